//! The nested lab: QEMU emulating a processor with SVM, one start per run. Composes the emulator's command line, carries
//! output and status out of it, and sees to it that nothing outlives the run.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::image::Image;
use super::watch::{End, Limits, Signal, Watch};
use super::{
    HostFiles, LAB_FAILED, Options, TIMED_OUT, default_memory_mib, environment, results, say_timed_out,
};
use crate::step::run as run_command;
use crate::workspace;

/// With what runs guests; without a virtual interrupt flag and virtual VMLOAD, with which the emulator now and then lets an
/// interrupt in between #VMEXIT and VMLOAD, where the kernel has the guest's GS; and without what emulation makes slow:
/// five levels of page tables, which a nested guest walks twice, and the string instructions that kernels use byte by
/// byte where the processor says that this is fast.
pub(crate) const PROCESSOR: &str = "max,+svm,vgif=off,v-vmsave-vmload=off,la57=off,erms=off,fsrm=off";
const MOUNTED_DATA: &str = "/var/lib/berth-lab";
const CONSOLE_LINES_SHOWN: usize = 25;

/// Boots the lab, runs the command in it, and returns the status. A lab that never got to the command gets one more try.
pub(super) fn run(options: &Options, image: &Image) -> Result<u8> {
    for attempt in 1..=2 {
        let folder = RunFolder::new()?;
        let end = boot(options, image, &folder)?;
        let reason = match end {
            End::Status(status) => return Ok(status),
            End::TimedOut => {
                say_timed_out(options);
                return Ok(TIMED_OUT);
            }
            End::NeverReady(reason) | End::Lost(reason) => reason,
        };
        folder.show_console();
        eprintln!("lab: THE LAB FAILED, not the command: {reason}");
        if !matches!(end, End::NeverReady(_)) {
            break;
        }
        if attempt == 1 {
            eprintln!("lab: TRYING ONCE MORE, since the command had not started");
        }
    }
    Ok(LAB_FAILED)
}

fn boot(options: &Options, image: &Image, folder: &RunFolder) -> Result<End> {
    folder.fill(options)?;
    // Before there are ports, which would be open in these processes too.
    let _awake = options.emulated.awake.then(keep_awake).transpose()?;
    let (out, out_far) = port()?;
    let (err, err_far) = port()?;
    let (control, control_far) = port()?;
    let mut command = emulator(options, image, folder, [&out_far, &err_far, &control_far])?;
    let start = Instant::now();
    let mut emulator = Running(
        command
            .spawn()
            .with_context(|| format!("cannot run {}", image.emulator.program.display()))?,
    );
    // The emulator has its own copies; the ports end when it does.
    drop((out_far, err_far, control_far));

    let (sender, signals) = mpsc::channel();
    let copies = [
        copy(out, io::stdout(), sender.clone()),
        copy(err, io::stderr(), sender.clone()),
    ];
    thread::spawn(move || {
        for line in BufReader::new(control).lines().map_while(Result::ok) {
            if let Some(signal) = Signal::parse(&line)
                && sender.send(signal).is_err()
            {
                return;
            }
        }
    });

    let limits = Limits {
        timeout: options.timeout.map(Duration::from_secs),
        silence: options.silence.map(Duration::from_secs),
    };
    let mut watch = Watch::new(limits, options.cpus);
    let end = loop {
        let heard = signals.recv_timeout(Duration::from_millis(250));
        let now = start.elapsed();
        let verdict = match heard {
            Ok(signal) => {
                let verdict = watch.hear(signal, now);
                if signal == Signal::Ready {
                    eprintln!("lab: ready after {:.1} s", now.as_secs_f64());
                }
                verdict
            }
            Err(RecvTimeoutError::Disconnected) => Some(watch.gone()),
            Err(RecvTimeoutError::Timeout) => None,
        };
        if let Some(end) = verdict.or_else(|| watch.judge(now)) {
            break end;
        }
    };
    emulator.end();
    for copy in copies {
        // A copy that panicked has said so itself.
        let _ = copy.join();
    }
    Ok(end)
}

/// Has each processor do something whenever it has nothing to do. Whatever else there is comes first.
fn keep_awake() -> Result<Vec<Running>> {
    let processors = thread::available_parallelism().context("cannot count the processors")?;
    let idle = ["--idle", "0", "setpriv", "--pdeathsig", "KILL", "--"];
    (0..processors.get())
        .map(|_| {
            let mut command = Command::new("chrt");
            command.args(idle).args(["sh", "-c", "while :; do :; done"]);
            let child = command.spawn().context("cannot run chrt")?;
            Ok(Running(child))
        })
        .collect()
}

/// A process of the run's; it does not outlive this value.
struct Running(Child);

impl Running {
    fn end(&mut self) {
        // Neither fails but for a process that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Both ends of a port; the second one is left open across `exec`.
fn port() -> Result<(UnixStream, UnixStream)> {
    let (near, far) = UnixStream::pair().context("cannot make a socket pair")?;
    fcntl(&far, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot pass a socket on")?;
    Ok((near, far))
}

/// Copies all that comes at once, whole lines or not.
fn copy(
    mut from: UnixStream,
    mut to: impl Write + Send + 'static,
    signals: Sender<Signal>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        let mut broken = false;
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            // Whoever reads us may go; the lab must not notice.
            broken = broken || to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err();
            // Nobody listens once the end is known.
            let _ = signals.send(Signal::Output);
        }
    })
}

fn emulator(
    options: &Options,
    image: &Image,
    folder: &RunFolder,
    [out, err, control]: [&UnixStream; 3],
) -> Result<Command> {
    let memory = options.memory.map_or_else(default_memory_mib, Ok)?;
    let modules = utf8(&image.modules)?;
    let inside = workspace::root().join("lab/inside.sh");
    // A lab whose kernel has met a fault, or in which a program waits in the kernel for minutes, is lost; it must not go on
    // half alive.
    let cmdline = format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic hung_task_panic=1 nokaslr mitigations=off apparmor=0 audit=0 nowatchdog random.trust_cpu=on \
         net.ifnames=0 berth.lab={} berth.inside={} berth.results={} berth.modules={modules} berth.cache={}",
        utf8(&folder.path)?,
        utf8(&inside)?,
        utf8(&results())?,
        // As the 9p file system names them.
        match options.emulated.host_files {
            HostFiles::Cached => "loose",
            HostFiles::Uncached => "none",
        },
    );
    ensure!(
        cmdline.len() < 2000,
        "the paths of the checkout and the cache are too long: {cmdline}"
    );
    ensure!(!cmdline.contains("//"), "a path has an empty part: {cmdline}");

    // Should this process be killed, the kernel ends the emulator as well.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(&image.emulator.program);
    for folder in &image.emulator.firmware {
        command.arg("-L").arg(folder);
    }
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args([
        "-machine",
        "q35,accel=tcg,usb=off,smbus=off,sata=off",
        "-cpu",
        &options.emulated.processor,
    ]);
    command.args(["-smp", &options.cpus.to_string(), "-m", &memory.to_string()]);
    command
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd);
    command.args(["-append", &cmdline]);
    command.args([
        "-chardev",
        &format!("file,id=console,path={}", utf8(&folder.console())?),
    ]);
    command.args(["-serial", "chardev:console"]);
    command.args([
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
    ]);
    command.args(["-device", "virtio-serial-pci"]);
    for (name, end) in [("out", out), ("err", err), ("control", control)] {
        command.args(["-chardev", &format!("socket,id={name},fd={}", end.as_raw_fd())]);
        command.args([
            "-device",
            &format!("virtserialport,chardev={name},name=berth.{name}"),
        ]);
    }
    command
        .args(share("host", Path::new("/"), true)?)
        .args(share("results", &results(), false)?);
    let disk = format!(
        "file={},if=none,id=disk,format=raw,cache=unsafe,discard=unmap",
        utf8(&folder.disk())?
    );
    command.args(["-drive", &disk, "-device", "virtio-blk-pci,drive=disk"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

/// A folder of this machine, seen inside over 9p under a tag.
fn share(tag: &str, path: &Path, read_only: bool) -> Result<[String; 4]> {
    let read_only = if read_only { ",readonly=on" } else { "" };
    let path = utf8(path)?;
    Ok([
        "-fsdev".to_owned(),
        format!("local,id={tag},path={path},security_model=none,multidevs=remap{read_only}"),
        "-device".to_owned(),
        format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ])
}

/// A path that can stand on the kernel's and the emulator's command lines.
fn utf8(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) if !text.contains([',', ' ', '"', '\'']) => Ok(text),
        _ => bail!(
            "the path {} has a character that the lab cannot carry",
            path.display()
        ),
    }
}

/// The files of one run, in the cache, removed at its end.
struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    fn new() -> Result<Self> {
        let runs = workspace::cache()?.join("lab/runs");
        fs::create_dir_all(&runs).with_context(|| format!("cannot create {}", runs.display()))?;
        sweep(&runs)?;
        let path = runs.join(std::process::id().to_string());
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }

    fn disk(&self) -> PathBuf {
        self.path.join("disk")
    }

    fn console(&self) -> PathBuf {
        self.path.join("console")
    }

    fn fill(&self, options: &Options) -> Result<()> {
        let disk = self.disk();
        let bytes = u64::from(options.disk) << 30;
        File::create_new(&disk)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| format!("cannot create {}", disk.display()))?;
        // Thrown away after the run, so no journal; and nothing written that can be zero.
        run_command(
            Command::new("/sbin/mkfs.ext4")
                .args([
                    "-q",
                    "-F",
                    "-O",
                    "^has_journal",
                    "-E",
                    "lazy_itable_init=1,nodiscard",
                ])
                .arg(&disk),
        )?;
        fs::write(self.path.join("env"), env_script(options)?)
            .context("cannot write the lab's environment")?;
        fs::write(self.path.join("command"), command_script(options)?)
            .context("cannot write the lab's command")
    }

    /// The end of the kernel's log to standard error, the whole of it to where it stays.
    fn show_console(&self) {
        let Ok(log) = fs::read(self.console()) else { return };
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(CONSOLE_LINES_SHOWN)..] {
            eprintln!("lab console: {line}");
        }
        let kept = results().join("console.log");
        match fs::write(&kept, log.as_bytes()) {
            Ok(()) => eprintln!("lab: the whole console log is in {}", kept.display()),
            Err(error) => eprintln!("lab: cannot write {}: {error}", kept.display()),
        }
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("lab: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes what runs left behind that were killed.
fn sweep(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs).with_context(|| format!("cannot read {}", runs.display()))? {
        let path = entry
            .with_context(|| format!("cannot read {}", runs.display()))?
            .path();
        let alive = path
            .file_name()
            .is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !alive {
            // Another run may be sweeping the same folder.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

fn env_script(options: &Options) -> Result<Vec<u8>> {
    let xtask = std::env::current_exe().context("cannot tell the path of this program")?;
    let mut variables = environment(&options.names);
    variables.extend([
        ("BERTH_LAB".to_owned(), OsString::from("nested")),
        ("BERTH_LAB_DATA".to_owned(), MOUNTED_DATA.into()),
        ("BERTH_LAB_RESULTS".to_owned(), results().into()),
        ("BERTH_LAB_XTASK".to_owned(), xtask.into()),
    ]);
    let mut script = Vec::new();
    for (name, value) in variables {
        script.extend_from_slice(format!("export {name}=").as_bytes());
        script.extend_from_slice(&quote(&value));
        script.push(b'\n');
    }
    Ok(script)
}

fn command_script(options: &Options) -> Result<Vec<u8>> {
    let folder = std::env::current_dir().context("cannot tell the working folder")?;
    let mut script = b"cd ".to_vec();
    script.extend_from_slice(&quote(folder.as_os_str()));
    script.extend_from_slice(b" || exit 125\nexec");
    for word in &options.command {
        script.push(b' ');
        script.extend_from_slice(&quote(word));
    }
    script.push(b'\n');
    Ok(script)
}

/// A word that a shell reads as it is.
fn quote(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_would_break_a_command_line_are_refused() {
        assert!(utf8(Path::new("/a/b-c_d.e+f")).is_ok());
        for path in ["/a b", "/a,readonly=off", "/a\"", "/it's"] {
            assert!(utf8(Path::new(path)).is_err(), "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_shell_reads_a_quoted_word_as_it_is(word in "[^\0]{0,24}") {
            let mut script = b"printf %s ".to_vec();
            script.extend_from_slice(&quote(OsStr::new(&word)));
            let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
            prop_assert_eq!(output.stdout, word.as_bytes());
        }
    }
}

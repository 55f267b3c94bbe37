//! What a compromised machine might try, each a few lines of what its code could do: for the tests of the jail, which
//! run them on the main thread after everything is closed. Not part of a release.

use std::ffi::CString;
use std::io;
use std::str::FromStr;

use nix::errno::Errno;

/// One thing to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Nothing at all: what a machine does that behaves.
    Nothing,
    /// Open a file of the host.
    Open,
    /// Count the files of the root folder; fails where there is any.
    List,
    /// Make a file.
    Create,
    Ptrace,
    Mount,
    /// A socket of the Internet.
    Socket,
    /// Run a program of the host's.
    Exec,
    Fork,
    /// Signal the process that started this one.
    Kill,
    /// Have KVM make another machine.
    CreateVm,
    /// Become root.
    Root,
    /// Memory that can be executed.
    Executable,
    /// More open files than the jail leaves.
    Limit,
}

pub const ALL: [(&str, Probe); 14] = [
    ("nothing", Probe::Nothing),
    ("open", Probe::Open),
    ("list", Probe::List),
    ("create", Probe::Create),
    ("ptrace", Probe::Ptrace),
    ("mount", Probe::Mount),
    ("socket", Probe::Socket),
    ("exec", Probe::Exec),
    ("fork", Probe::Fork),
    ("kill", Probe::Kill),
    ("create-vm", Probe::CreateVm),
    ("root", Probe::Root),
    ("executable", Probe::Executable),
    ("limit", Probe::Limit),
];

impl FromStr for Probe {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        ALL.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, probe)| *probe)
            .ok_or_else(|| format!("cannot probe {name:?}"))
    }
}

impl Probe {
    /// Does it, with system calls only, and says how that went. `parent` is the process that started this one, and `kvm` a
    /// descriptor that is `/dev/kvm` where no jail has closed it.
    pub fn run(self, parent: libc::pid_t, kvm: libc::c_int) -> io::Result<()> {
        let path = |path: &str| CString::new(path).map_err(io::Error::from);
        let host_file = path("/etc/hostname")?;
        let done = |result: libc::c_long| Errno::result(result).map(drop).map_err(io::Error::from);
        // SAFETY (of each call below): paths are C strings that outlive the call, other pointers are null or to locals, and
        // numbers are only numbers. A child of `fork` ends at once, by a system call.
        match self {
            Self::Nothing => Ok(()),
            Self::Open => {
                // SAFETY: as above.
                done(unsafe { libc::open(host_file.as_ptr(), libc::O_RDONLY) }.into())
            }
            Self::List => {
                let found = std::fs::read_dir("/")?.count();
                if found == 0 {
                    return Err(io::Error::other("the root folder is empty"));
                }
                Ok(())
            }
            Self::Create => {
                let file = path("/berth-probe")?;
                // SAFETY: as above.
                let made = unsafe { libc::open(file.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600) };
                done(made.into())?;
                // SAFETY: as above.
                done(unsafe { libc::unlink(file.as_ptr()) }.into())
            }
            Self::Ptrace => {
                let (request, nothing) = (libc::PTRACE_SEIZE, std::ptr::null_mut::<libc::c_void>());
                // SAFETY: as above.
                done(unsafe { libc::ptrace(request, parent, nothing, nothing) })?;
                // SAFETY: as above.
                done(unsafe { libc::ptrace(libc::PTRACE_DETACH, parent, nothing, nothing) }).or(Ok(()))
            }
            Self::Mount => {
                let (kind, target) = (path("tmpfs")?, path("/")?);
                // SAFETY: as above; the mount covers the root of a namespace that the caller made for the probe.
                let mounted = unsafe {
                    libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null())
                };
                done(mounted.into())
            }
            Self::Socket => {
                // SAFETY: as above.
                let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
                done(socket.into())?;
                reach_loopback(socket)
            }
            Self::Exec => {
                let (program, nothing) = (path("/bin/true")?, std::ptr::null());
                // SAFETY: as above.
                done(unsafe { libc::execve(program.as_ptr(), &raw const nothing, &raw const nothing) }.into())
            }
            Self::Fork => {
                // SAFETY: as above.
                match unsafe { libc::fork() } {
                    // SAFETY: as above.
                    0 => unsafe { libc::_exit(0) },
                    child => {
                        done(child.into())?;
                        // SAFETY: as above.
                        done(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }.into())
                    }
                }
            }
            // SAFETY: as above; the signal is one that is ignored by default.
            Self::Kill => done(unsafe { libc::kill(parent, libc::SIGURG) }.into()),
            Self::CreateVm => {
                const KVM_CREATE_VM: libc::c_ulong = 0xae01;
                // SAFETY: as above.
                done(unsafe { libc::ioctl(kvm, KVM_CREATE_VM, 0) }.into())
            }
            // SAFETY: as above.
            Self::Root => done(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }),
            Self::Executable => {
                let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                // SAFETY: as above; the mapping is new.
                let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
                done(if mapped == libc::MAP_FAILED { -1 } else { 0 })
            }
            Self::Limit => {
                let limit = libc::rlimit {
                    rlim_cur: 1 << 13,
                    rlim_max: 1 << 13,
                };
                // SAFETY: as above.
                done(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }.into())
            }
        }
    }
}

/// Sends nothing to the host's loopback address, which only works where there is such an interface.
fn reach_loopback(socket: libc::c_int) -> io::Result<()> {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor was just made, and nobody else owns it.
    let socket = unsafe { std::net::UdpSocket::from_raw_fd(socket) };
    socket.send_to(&[], "127.0.0.1:9").map(drop)
}

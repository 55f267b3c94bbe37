//! Templates: for each shape of machine one that has booted up to where its init waits for a task, written down. It holds
//! no tenant's data. Tasks start as clones of it, which share its memory until they write to it.
//!
//! A template is made when its shape is first used, in the background, and tried once before it is used. It is good for as
//! long as this daemon runs and nothing that it was made from has changed.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::at;
use super::launch::{self, Binaries, Start};
use super::running::RunningMachine;
use super::starter::Starter;
use crate::model::task::TaskId;
use crate::network::template_tap;
use crate::task::host::{HostError, MachineSpec};
use crate::task::session::wait_for_hello;
use crate::task::spec::image_drive;

const UNITS_PER_VCPU: u32 = 1024;
/// How long a template may take to boot, and its trial to say hello.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nobody's: clones are given theirs with their task.
const MAC: &str = "02:00:00:00:00:01";
/// A disk for a drive that has none: the least there can be, which tells the guest to wait for the real one.
const PLACEHOLDER_BYTES: u64 = 512;
const PLACEHOLDER_FILE: &str = "placeholder";

/// What tasks share with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// The memory of the template that they start from, as long as nobody writes to it: mostly the guest kernel's.
    #[default]
    Shared,
    /// Nothing: every task boots a kernel of its own.
    Strict,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no isolation: it is shared or strict")]
pub struct BadIsolation(String);

impl FromStr for Isolation {
    type Err = BadIsolation;

    fn from_str(text: &str) -> Result<Self, BadIsolation> {
        match text {
            "shared" => Ok(Self::Shared),
            "strict" => Ok(Self::Strict),
            _ => Err(BadIsolation(text.to_owned())),
        }
    }
}

/// All that shapes a machine before it has a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    vcpus: u32,
    memory_mib: u32,
    images: usize,
    /// Of the network device, if there is one.
    mtu: Option<u16>,
}

impl Shape {
    pub fn of(spec: &MachineSpec) -> Self {
        Self {
            vcpus: spec.cpu_units.div_ceil(UNITS_PER_VCPU).max(1),
            memory_mib: spec.memory_mib,
            images: spec.images.len(),
            mtu: spec.tap.is_some().then_some(spec.mtu),
        }
    }

    fn name(&self) -> String {
        let Self {
            vcpus,
            memory_mib,
            images,
            mtu,
        } = self;
        let network = mtu.map_or_else(|| "alone".to_owned(), |mtu| format!("net{mtu}"));
        format!("{vcpus}x{memory_mib}-{images}-{network}")
    }
}

/// Which files the VMM, the kernel and the init are; others would have made another template.
type Origin = [(u64, u64, u64, i64, i64); 3];

fn origin(binaries: &Binaries) -> io::Result<Origin> {
    let identity = |path: &Path| {
        let file = fs::metadata(path)?;
        Ok::<_, io::Error>((
            file.dev(),
            file.ino(),
            file.size(),
            file.mtime(),
            file.mtime_nsec(),
        ))
    };
    Ok([
        identity(&binaries.vmm)?,
        identity(&binaries.kernel)?,
        identity(&binaries.initrd)?,
    ])
}

#[derive(Clone)]
enum Slot {
    /// Somebody makes it, or has failed to: it is not tried again.
    Taken,
    Ready(Arc<Template>),
}

struct Template {
    dir: PathBuf,
    origin: Origin,
}

impl Template {
    fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// How a clone starts. The files stay open, whatever becomes of their names.
    fn clone_start(&self) -> Result<Start, HostError> {
        let open = |path: PathBuf| File::open(&path).map_err(|error| at(&path, "open", &error));
        Ok(Start::Clone {
            memory: open(self.memory())?,
            state: open(self.state())?,
        })
    }
}

/// The templates of this host.
pub(super) struct Templates {
    dir: PathBuf,
    isolation: Isolation,
    slots: Mutex<HashMap<Shape, Slot>>,
    /// One is made at a time: tasks need the processors more.
    making: tokio::sync::Mutex<()>,
}

impl Templates {
    /// Those of an earlier daemon are thrown away: it may have been cut off in the middle of writing one.
    pub fn open(dir: PathBuf, isolation: Isolation) -> Result<Self, HostError> {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&dir, "remove", &error)),
            _ => {}
        }
        let mut builder = fs::DirBuilder::new();
        builder
            .mode(0o700)
            .create(&dir)
            .map_err(|error| at(&dir, "make", &error))?;
        new_file(&dir.join(PLACEHOLDER_FILE), PLACEHOLDER_BYTES)?;
        Ok(Self {
            dir,
            isolation,
            slots: Mutex::default(),
            making: tokio::sync::Mutex::default(),
        })
    }

    /// How a machine of this shape starts as a clone, if there is a template for it.
    pub fn clone_of(&self, shape: &Shape, binaries: &Binaries) -> Option<Start> {
        let template = match self.slots().get(shape)? {
            Slot::Ready(template) => template.clone(),
            Slot::Taken => return None,
        };
        if origin(binaries).ok() != Some(template.origin) {
            tracing::info!(
                template = shape.name(),
                "what a template was made from has changed"
            );
            self.forget(shape);
            return None;
        }
        match template.clone_start() {
            Ok(start) => Some(start),
            Err(error) => {
                tracing::warn!(template = shape.name(), %error, "a template is gone");
                self.forget(shape);
                None
            }
        }
    }

    /// Makes a template of this shape in the background, unless there is one, or was one that did not work.
    pub fn make_in_background(self: &Arc<Self>, shape: Shape, starter: &Starter) {
        if self.isolation == Isolation::Strict || self.slots().contains_key(&shape) {
            return;
        }
        self.slots().insert(shape, Slot::Taken);
        let (this, starter) = (Arc::clone(self), starter.clone());
        tokio::spawn(async move {
            let _one_at_a_time = this.making.lock().await;
            let started = Instant::now();
            match this.make(shape, &starter).await {
                Ok(template) => {
                    let milliseconds = started.elapsed().as_millis();
                    tracing::info!(template = shape.name(), milliseconds, "a template is ready");
                    this.slots().insert(shape, Slot::Ready(Arc::new(template)));
                }
                Err(error) => {
                    tracing::warn!(template = shape.name(), %error, "no template: tasks of this shape boot each");
                }
            }
        });
    }

    /// A clone did not work: no others are made, and tasks of this shape boot.
    pub fn give_up(&self, shape: &Shape) {
        self.slots().insert(*shape, Slot::Taken);
        // Clones that run have it open; only its name goes.
        drop(fs::remove_dir_all(self.dir.join(shape.name())));
    }

    fn forget(&self, shape: &Shape) {
        self.slots().remove(shape);
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Shape, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, shape: Shape, starter: &Starter) -> Result<Template, HostError> {
        let template = Template {
            dir: self.dir.join(shape.name()),
            origin: origin(&starter.binaries)
                .map_err(|error| HostError(format!("cannot look at what machines start from: {error}")))?,
        };
        match fs::remove_dir_all(&template.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at(&template.dir, "remove", &error));
            }
            _ => {}
        }
        fs::create_dir(&template.dir).map_err(|error| at(&template.dir, "make", &error))?;
        let memory_bytes = u64::from(launch::guest_mib(shape.memory_mib)) << 20;
        let start = Start::Template {
            memory: new_file(&template.memory(), memory_bytes)?,
            state: new_file(&template.state(), 0)?,
        };
        self.run(shape, start, starter, async |machine| {
            wait_for_hello(machine).await?;
            machine.snapshot().await
        })
        .await?;
        // The trial: what does not work here would not work for a task.
        self.run(shape, template.clone_start()?, starter, wait_for_hello)
            .await?;
        Ok(template)
    }

    /// Starts a machine without a task, does something with it, and removes it.
    async fn run(
        &self,
        shape: Shape,
        start: Start,
        starter: &Starter,
        with: impl AsyncFnOnce(&RunningMachine) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let placeholder = self.dir.join(PLACEHOLDER_FILE);
        let spec = MachineSpec {
            // Of no task: should this daemon end here, the next one removes what is left.
            task: TaskId::random(),
            cpu_units: shape.vcpus * UNITS_PER_VCPU,
            memory_mib: shape.memory_mib,
            scratch_gib: 0,
            images: (0..shape.images)
                .map(|index| (image_drive(index), placeholder.clone()))
                .collect(),
            tap: shape
                .mtu
                .map(|_| template_tap())
                .transpose()
                .map_err(super::host_error)?,
            mac: MAC.to_owned(),
            mtu: shape.mtu.unwrap_or_default(),
        };
        let task = spec.task.clone();
        let done = match starter.start(Arc::new(spec), start, ()).await {
            Ok(machine) => match tokio::time::timeout(PATIENCE, with(&machine)).await {
                Ok(done) => done,
                Err(_) => Err(HostError("it takes too long".to_owned())),
            },
            Err(error) => Err(error),
        };
        starter.remove(&task).await?;
        done
    }
}

fn new_file(path: &Path, bytes: u64) -> Result<File, HostError> {
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let file = made.map_err(|error| at(path, "make", &error))?;
    file.set_len(bytes).map_err(|error| at(path, "size", &error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MachineSpec {
        MachineSpec {
            task: TaskId::random(),
            cpu_units: 256,
            memory_mib: 512,
            scratch_gib: 21,
            images: vec![("image-0".into(), "a".into())],
            tap: None,
            mac: MAC.into(),
            mtu: 1500,
        }
    }

    #[test]
    fn tasks_that_differ_in_what_the_guest_cannot_see_share_a_shape() {
        let shape = Shape::of(&spec());
        for change in [
            |spec: &mut MachineSpec| spec.cpu_units = 1024,
            |spec: &mut MachineSpec| spec.scratch_gib = 200,
            |spec: &mut MachineSpec| spec.mac = "02:00:00:00:00:09".into(),
            |spec: &mut MachineSpec| spec.images[0].1 = "b".into(),
        ] {
            let mut other = spec();
            change(&mut other);
            assert_eq!(Shape::of(&other), shape);
        }
        for change in [
            |spec: &mut MachineSpec| spec.cpu_units = 1025,
            |spec: &mut MachineSpec| spec.memory_mib = 1024,
            |spec: &mut MachineSpec| spec.images.push(("image-1".into(), "a".into())),
            |spec: &mut MachineSpec| spec.tap = Some(File::open("/dev/null").unwrap().into()),
        ] {
            let mut other = spec();
            change(&mut other);
            assert_ne!(Shape::of(&other), shape);
            assert_ne!(Shape::of(&other).name(), shape.name());
        }
    }

    #[test]
    fn a_template_is_forgotten_when_a_program_that_made_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let binaries = Binaries {
            vmm: file("vmm"),
            kernel: file("kernel"),
            initrd: file("initrd"),
        };
        let templates = Templates::open(folder.path().join("templates"), Isolation::Shared).unwrap();
        let shape = Shape::of(&spec());
        assert!(templates.clone_of(&shape, &binaries).is_none());
        let template = Template {
            dir: folder.path().to_owned(),
            origin: origin(&binaries).unwrap(),
        };
        fs::write(template.memory(), "").unwrap();
        fs::write(template.state(), "").unwrap();
        templates.slots().insert(shape, Slot::Ready(Arc::new(template)));
        assert!(templates.clone_of(&shape, &binaries).is_some());
        fs::write(&binaries.kernel, "another").unwrap();
        assert!(templates.clone_of(&shape, &binaries).is_none());
        // And may be made anew.
        assert!(!templates.slots().contains_key(&shape));
    }

    #[test]
    fn a_daemon_starts_without_the_templates_of_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("templates");
        Templates::open(dir.clone(), Isolation::Shared).unwrap();
        fs::create_dir(dir.join("old")).unwrap();
        Templates::open(dir.clone(), Isolation::Shared).unwrap();
        assert!(!dir.join("old").exists() && dir.join(PLACEHOLDER_FILE).exists());
    }
}

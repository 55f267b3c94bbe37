//! Templates: for each shape of machine one that has booted up to where its init waits for a task, written down. It holds
//! no tenant's data. Tasks start as clones of it, which share its memory until they write to it.
//!
//! A template is made when its shape is first used, in the background, and tried once before it is used. It is good for as
//! long as this daemon runs and nothing that it was made from has changed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_vmm::config::WorkingSet;

use super::at;
use super::husk::Husk;
use super::launch::{self, Binaries, Start, TemplateFiles, UNITS_PER_VCPU};
use super::rehearsal;
use super::running::RunningMachine;
use super::starter::Starter;
use crate::faults::{self, Point};
use crate::model::definition::DEFAULT_EPHEMERAL_STORAGE_GIB;
use crate::model::isolation::Isolation;
use crate::model::task::TaskId;
use crate::network::template_tap;
use crate::task::host::{HostError, MachineSpec};
use crate::task::session::{rehearse, wait_for_hello};
use crate::task::spec::image_drive;

/// How long a template may take to boot, and its trial to run a task.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one that has booted is left alone before it is written down. What a kernel puts off after its boot, and the first
/// reports of free memory, each clone would do again: a sixth of its pages, and of the time that a restore takes.
const SETTLING: Duration = Duration::from_secs(4);
/// Larger machines boot: restored over and over under load, one of four vCPUs was seen to fall silent, and it is not known
/// why.
const MOST_VCPUS: u32 = 1;
/// Nobody's: clones are given theirs with their task.
const MAC: &str = "02:00:00:00:00:01";
/// A disk for a drive that has none: the least there can be, which tells the guest to wait for the real one.
const PLACEHOLDER_BYTES: u64 = 512;
const PLACEHOLDER_FILE: &str = "placeholder";
const REHEARSAL_FILE: &str = "rehearsal";
/// Most room on the disk that all templates together take: each some 35 MiB and 1/64 of its machine's memory.
const MAX_BYTES: u64 = 4 << 30;

/// All that shapes a machine before it has a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub vcpus: u32,
    pub memory_mib: u32,
    images: usize,
    /// Whether there is a drive for a volume.
    volume: bool,
    /// Of the network device, if there is one.
    mtu: Option<u16>,
}

impl Shape {
    pub fn of(spec: &MachineSpec) -> Self {
        Self {
            vcpus: spec.cpu_units.div_ceil(UNITS_PER_VCPU).max(1),
            memory_mib: spec.memory_mib,
            images: spec.images.len(),
            volume: spec.volume.is_some(),
            mtu: spec.tap.is_some().then_some(spec.mtu),
        }
    }

    pub fn name(&self) -> String {
        let Self {
            vcpus,
            memory_mib,
            images,
            volume,
            mtu,
        } = self;
        let network = mtu.map_or_else(|| "alone".to_owned(), |mtu| format!("net{mtu}"));
        let volume = if *volume { "-volume" } else { "" };
        format!("{vcpus}x{memory_mib}-{images}-{network}{volume}")
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

enum Slot {
    /// Somebody makes it, or it did not work: it is not made again.
    Taken,
    Ready(Arc<Template>),
}

/// A template, and its files for as long as anybody starts from it.
pub(super) struct Template {
    dir: PathBuf,
    origin: Origin,
    used: Mutex<Instant>,
    /// The pages that its trial needed to run a task.
    working_set: WorkingSet,
    /// Those that wait to be clones of it. They end with it.
    husks: Mutex<Vec<Husk>>,
}

impl Template {
    /// A folder of its own for each that is made, so that no end of one meets the making of another.
    fn make_folder(dir: &Path, shape: &Shape, origin: Origin) -> Result<Self, HostError> {
        let dir = dir.join(format!("{}-{:08x}", shape.name(), rand::random::<u32>()));
        fs::create_dir(&dir).map_err(|error| at(&dir, "make", &error))?;
        Ok(Self {
            dir,
            origin,
            used: Mutex::new(Instant::now()),
            working_set: WorkingSet::default(),
            husks: Mutex::default(),
        })
    }

    fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// How a clone starts.
    pub fn clone_start(&self) -> Result<Start, HostError> {
        *self.used() = Instant::now();
        self.files(false).map(Start::Clone)
    }

    /// What a clone, or one on trial, starts from. It can only read the files.
    pub fn files(&self, trial: bool) -> Result<TemplateFiles, HostError> {
        let open = |path: PathBuf| File::open(&path).map_err(|error| at(&path, "open", &error));
        Ok(TemplateFiles {
            memory: open(self.memory())?,
            state: open(self.state())?,
            working_set: self.working_set.clone(),
            trial,
        })
    }

    /// One that waits to be a clone, if there is any.
    pub fn take_husk(&self) -> Option<Husk> {
        *self.used() = Instant::now();
        let mut husks = self.husks();
        // Those that have ended are dropped here.
        std::iter::from_fn(|| husks.pop()).find_map(|mut husk| husk.is_alive().then_some(husk))
    }

    pub fn husks(&self) -> MutexGuard<'_, Vec<Husk>> {
        self.husks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes on the disk.
    fn size(&self) -> u64 {
        fs::metadata(self.memory()).map_or(0, |file| file.blocks() * 512)
    }

    fn used(&self) -> MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Template {
    /// Clones that run have the files open; only their names go.
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// The templates of this host.
pub(super) struct Templates {
    dir: PathBuf,
    isolation: Isolation,
    slots: Mutex<HashMap<Shape, Slot>>,
    /// One is made at a time: tasks need the processors more.
    making: tokio::sync::Mutex<()>,
    /// Told when there is another one, or one was used.
    pub changed: tokio::sync::Notify,
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
            changed: tokio::sync::Notify::new(),
        })
    }

    /// The template of this shape, if there is one that is still good.
    pub fn find(&self, shape: &Shape, binaries: &Binaries) -> Option<Arc<Template>> {
        let mut slots = self.slots();
        let template = match slots.get(shape)? {
            Slot::Ready(template) => template.clone(),
            Slot::Taken => return None,
        };
        if origin(binaries).ok() == Some(template.origin) {
            return Some(template);
        }
        tracing::info!(
            template = shape.name(),
            "what a template was made from has changed"
        );
        slots.remove(shape);
        None
    }

    /// Those that tasks can start from, the one that was used last first.
    pub fn by_use(&self) -> Vec<(Shape, Arc<Template>)> {
        let mut ready: Vec<_> = self
            .slots()
            .iter()
            .filter_map(|(shape, slot)| match slot {
                Slot::Ready(template) => Some((*shape, Arc::clone(template))),
                Slot::Taken => None,
            })
            .collect();
        ready.sort_by_key(|(_, template)| std::cmp::Reverse(*template.used()));
        ready
    }

    /// Makes a template of this shape in the background, unless there is one, or was one that did not work.
    pub fn make_in_background(self: &Arc<Self>, shape: Shape, starter: &Starter) {
        if self.isolation == Isolation::Strict || shape.vcpus > MOST_VCPUS {
            return;
        }
        match self.slots().entry(shape) {
            Entry::Occupied(_) => return,
            Entry::Vacant(slot) => slot.insert(Slot::Taken),
        };
        let (this, starter) = (Arc::clone(self), starter.clone());
        tokio::spawn(async move {
            let _one_at_a_time = this.making.lock().await;
            let started = Instant::now();
            match this.make(shape, &starter).await {
                Ok(template) => {
                    faults::pass(Point::TemplateTried);
                    this.slots().insert(shape, Slot::Ready(Arc::new(template)));
                    this.keep_within(MAX_BYTES);
                    this.changed.notify_one();
                    let milliseconds = started.elapsed().as_millis();
                    tracing::info!(template = shape.name(), milliseconds, "a template is ready");
                }
                Err(error) => {
                    tracing::warn!(template = shape.name(), %error, "no template: tasks of this shape boot each");
                }
            }
        });
    }

    /// This template did not work, where booting did: tasks of its shape boot from now on.
    pub fn give_up(&self, shape: &Shape, template: &Arc<Template>) {
        self.replace(shape, template, Some(Slot::Taken));
    }

    /// Puts something in the place of this template, if it still has one.
    fn replace(&self, shape: &Shape, template: &Arc<Template>, by: Option<Slot>) {
        let mut slots = self.slots();
        if matches!(slots.get(shape), Some(Slot::Ready(ready)) if Arc::ptr_eq(ready, template)) {
            match by {
                Some(slot) => slots.insert(*shape, slot),
                None => slots.remove(shape),
            };
        }
    }

    /// Gives up those that have not been used for longest, until the rest takes no more room than this. The last one made
    /// stays, whatever its size. Others of their shape can be made.
    fn keep_within(&self, max_bytes: u64) {
        let mut total = 0;
        for (number, (shape, template)) in self.by_use().into_iter().enumerate() {
            total += template.size();
            if number > 0 && total > max_bytes {
                self.replace(&shape, &template, None);
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Shape, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, shape: Shape, starter: &Starter) -> Result<Template, HostError> {
        let origin = origin(&starter.binaries)
            .map_err(|error| HostError(format!("cannot look at what machines start from: {error}")))?;
        let mut template = Template::make_folder(&self.dir, &shape, origin)?;
        let memory_bytes = u64::from(launch::guest_mib(shape.memory_mib)) << 20;
        let start = Start::Template {
            memory: new_file(&template.memory(), memory_bytes)?,
            state: new_file(&template.state(), 0)?,
        };
        let written = |point| {
            let unrefused = faults::write(point);
            unrefused.map_err(|error| at(&template.dir, "write", &error))
        };
        written(Point::TemplateBegun)?;
        self.run(
            shape,
            start,
            &Disks::placeholders(&self.dir),
            starter,
            async |machine| {
                wait_for_hello(machine).await?;
                tokio::time::sleep(SETTLING).await;
                faults::pass(Point::TemplateBooted);
                machine.snapshot().await?;
                written(Point::TemplateWritten)
            },
        )
        .await?;
        // The trial: what does not work here would not work for a task. What it has touched, all clones will.
        let disks = self.disks_for_trial().await?;
        let mac = MAC.parse().map_err(super::host_error)?;
        let task = rehearsal::task(shape.images, shape.memory_mib, mac, shape.mtu);
        let path = template.memory();
        let memory = File::open(&path).map_err(|error| at(&path, "open", &error))?;
        template.working_set = self
            .run(
                shape,
                Start::Clone(template.files(true)?),
                &disks,
                starter,
                async |machine| {
                    rehearse(machine, &task).await?;
                    faults::pass(Point::TemplateOnTrial);
                    machine.working_set(&memory).map_err(super::host_error)
                },
            )
            .await?;
        *template.used() = Instant::now();
        Ok(template)
    }

    /// Those of a task, as far as a task of nobody's needs them.
    async fn disks_for_trial(&self) -> Result<Disks, HostError> {
        let image = self.dir.join(REHEARSAL_FILE);
        if !image.exists() {
            let path = image.clone();
            let made = tokio::task::spawn_blocking(move || rehearsal::make_image(&path)).await;
            made.map_err(super::host_error).flatten()?;
        }
        Ok(Disks {
            image,
            scratch_gib: DEFAULT_EPHEMERAL_STORAGE_GIB,
        })
    }

    /// Starts a machine that is nobody's, does something with it, and removes it.
    async fn run<T>(
        &self,
        shape: Shape,
        start: Start,
        disks: &Disks,
        starter: &Starter,
        with: impl AsyncFnOnce(&RunningMachine) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        let placeholder = self.dir.join(PLACEHOLDER_FILE);
        let spec = MachineSpec {
            // Of no task: should this daemon end here, the next one removes what is left.
            task: TaskId::random(),
            isolation: Isolation::default(),
            cpu_units: shape.vcpus * UNITS_PER_VCPU,
            memory_mib: shape.memory_mib,
            scratch_gib: disks.scratch_gib,
            images: (0..shape.images)
                .map(|index| (image_drive(index), disks.image.clone()))
                .collect(),
            volume: shape.volume.then(|| placeholder.clone()),
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

/// What is in the drives of a machine that is nobody's.
struct Disks {
    image: PathBuf,
    scratch_gib: u32,
}

impl Disks {
    fn placeholders(dir: &Path) -> Self {
        Self {
            image: dir.join(PLACEHOLDER_FILE),
            scratch_gib: 0,
        }
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
            isolation: Isolation::default(),
            cpu_units: 256,
            memory_mib: 512,
            scratch_gib: 21,
            images: vec![("image-0".into(), "a".into())],
            volume: None,
            tap: None,
            mac: MAC.into(),
            mtu: 1500,
        }
    }

    fn binaries(folder: &Path) -> Binaries {
        let file = |name: &str| {
            let path = folder.join(name);
            fs::write(&path, name).unwrap();
            path
        };
        Binaries {
            vmm: file("vmm"),
            kernel: file("kernel"),
            initrd: file("initrd"),
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
            |spec: &mut MachineSpec| spec.volume = Some("v".into()),
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
        let binaries = binaries(folder.path());
        let templates = Templates::open(folder.path().join("templates"), Isolation::Shared).unwrap();
        let shape = Shape::of(&spec());
        assert!(templates.find(&shape, &binaries).is_none());
        let dir = ready(&templates, shape, &binaries, 0);
        let template = templates.find(&shape, &binaries).unwrap();
        assert!(template.clone_start().is_ok());
        fs::write(&binaries.kernel, "another").unwrap();
        assert!(templates.find(&shape, &binaries).is_none());
        // And may be made anew; who still starts from it, can.
        assert!(!templates.slots().contains_key(&shape));
        assert!(template.clone_start().is_ok());
        drop(template);
        assert!(!dir.exists());
    }

    /// Puts a template into its slot and returns its folder.
    fn ready(templates: &Templates, shape: Shape, binaries: &Binaries, bytes: usize) -> PathBuf {
        let template = Template::make_folder(&templates.dir, &shape, origin(binaries).unwrap()).unwrap();
        fs::write(template.memory(), vec![1; bytes]).unwrap();
        fs::write(template.state(), "").unwrap();
        let dir = template.dir.clone();
        templates.slots().insert(shape, Slot::Ready(Arc::new(template)));
        dir
    }

    #[test]
    fn only_a_template_that_did_not_work_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let binaries = binaries(folder.path());
        let templates = Templates::open(folder.path().join("templates"), Isolation::Shared).unwrap();
        let shape = Shape::of(&spec());
        let first = ready(&templates, shape, &binaries, 0);
        let bad = templates.find(&shape, &binaries).unwrap();
        let second = ready(&templates, shape, &binaries, 0);
        // There is a newer one by now.
        templates.give_up(&shape, &bad);
        drop(bad);
        assert!(!first.exists() && second.exists());
        let newer = templates.find(&shape, &binaries).unwrap();
        templates.give_up(&shape, &newer);
        drop(newer);
        assert!(!second.exists());
        assert!(templates.find(&shape, &binaries).is_none() && templates.slots().contains_key(&shape));
    }

    #[test]
    fn the_least_used_templates_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let binaries = binaries(folder.path());
        let templates = Templates::open(folder.path().join("templates"), Isolation::Shared).unwrap();
        let shapes: Vec<_> = (1..=3)
            .map(|gib| {
                Shape::of(&MachineSpec {
                    memory_mib: gib << 10,
                    ..spec()
                })
            })
            .collect();
        for shape in &shapes {
            ready(&templates, *shape, &binaries, 1 << 20);
        }
        let there = || {
            let found = |shape| templates.find(shape, &binaries).is_some();
            shapes.iter().map(found).collect::<Vec<_>>()
        };
        templates
            .find(&shapes[0], &binaries)
            .unwrap()
            .clone_start()
            .unwrap();
        templates.keep_within(3 << 20);
        assert_eq!(there(), [true, true, true]);
        templates.keep_within(5 << 19);
        assert_eq!(there(), [true, false, true]);
        templates.keep_within(1);
        assert_eq!(there(), [true, false, false]);
        assert!(!templates.slots().contains_key(&shapes[1]));
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

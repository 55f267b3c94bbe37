//! What the image tests share: images made from nothing, a real registry, a scripted one, and views of a tree.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_runtime::image::{Credentials, Digest, Image, ImageError, ImageOptions, ImageStore, PullLimits};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

pub(crate) const LIMITS: PullLimits = PullLimits {
    max_unpacked_bytes: 1 << 30,
};

/// Whether all these tools are here and this is root; says loudly if not.
pub(crate) fn have(tools: &[&str]) -> bool {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIPPED: unpacking images needs root");
        return false;
    }
    let missing: Vec<_> = tools
        .iter()
        .filter(|tool| {
            let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
            !path
                .split(':')
                .any(|folder| Path::new(folder).join(tool).is_file())
        })
        .collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: not installed: {missing:?}");
    }
    missing.is_empty()
}

pub(crate) fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn store(dir: &Path, insecure: &[&str]) -> ImageStore {
    let insecure_registries = insecure.iter().map(|it| (*it).to_owned()).collect();
    ImageStore::open(
        dir,
        ImageOptions {
            insecure_registries,
            max_compressed_bytes: 1 << 30,
            ..ImageOptions::default()
        },
    )
    .unwrap()
}

pub(crate) async fn pull(store: &ImageStore, reference: &str) -> Result<Image, ImageError> {
    store.pull(reference, None, LIMITS, &|_| {}).await
}

pub(crate) fn credentials(password: &str) -> Option<Credentials> {
    Some(Credentials {
        username: "alice".into(),
        password: password.into(),
    })
}

/// How a layer is stored.
#[derive(Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer in the making.
pub(crate) struct LayerBuilder(Builder<Vec<u8>>);

impl LayerBuilder {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(crate) fn entry(
        mut self,
        kind: EntryType,
        name: &str,
        value: &[u8],
        change: impl Fn(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(0);
        change(&mut header);
        if kind.is_symlink() || kind.is_hard_link() {
            self.0
                .append_link(&mut header, name, std::str::from_utf8(value).unwrap())
                .unwrap();
        } else {
            header.set_size(value.len() as u64);
            self.0.append_data(&mut header, name, value).unwrap();
        }
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, content, |_| {})
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, b"", |_| {})
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An OCI layout with one tagged image.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Digest,
    pub(crate) layers: Vec<Digest>,
}

fn blob(dir: &Path, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    digest
}

/// Writes a layout whose image `tag` has these layers.
pub(crate) fn layout(dir: &Path, tag: &str, layers: &[(Vec<u8>, Packing)]) -> Layout {
    layout_for(
        dir,
        tag,
        layers,
        "amd64",
        &json!({"Cmd": ["/bin/busybox", "sh"], "Env": ["A=b"]}),
    )
}

pub(crate) fn layout_for(
    dir: &Path,
    tag: &str,
    layers: &[(Vec<u8>, Packing)],
    architecture: &str,
    config: &Value,
) -> Layout {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut descriptors = Vec::new();
    let mut digests = Vec::new();
    for (tar, packing) in layers {
        let (bytes, suffix) = match packing {
            Packing::Plain => (tar.clone(), ""),
            Packing::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(tar).unwrap();
                (gzip.finish().unwrap(), "+gzip")
            }
            Packing::Zstd => (zstd::encode_all(tar.as_slice(), 1).unwrap(), "+zstd"),
        };
        let digest = blob(dir, &bytes);
        digests.push(digest);
        descriptors.push(json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
            "digest": digest, "size": bytes.len(),
        }));
    }
    let diff_ids: Vec<_> = layers.iter().map(|(tar, _)| Digest::of(tar)).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": blob(dir, &config), "size": config.len(),
        },
        "layers": descriptors,
    }))
    .unwrap();
    let digest = blob(dir, &manifest);
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    });
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    Layout {
        dir: dir.to_owned(),
        manifest: digest,
        layers: digests,
    }
}

/// The images of a store.
pub(crate) async fn list(store: &ImageStore) -> Vec<Image> {
    let stored = store.list().await.unwrap().into_iter();
    stored.map(|stored| stored.image).collect()
}

/// A small image, different for each text.
pub(crate) fn small(dir: &Path, text: &str) -> Layout {
    let tar = LayerBuilder::new()
        .dir("etc/")
        .file("etc/motd", text.as_bytes())
        .tar();
    layout(dir, "v1", &[(tar, Packing::Gzip)])
}

/// Debian's `docker-registry` on a port of its own, ended when dropped.
pub(crate) struct Registry {
    pub(crate) address: String,
    pub(crate) root: tempfile::TempDir,
    process: Child,
}

impl Registry {
    /// With `auth`, alice's password is "correct horse".
    pub(crate) fn start(auth: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let address = free_address();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            root.path().join("data").display()
        );
        if auth {
            let passwords = root.path().join("htpasswd");
            fs::write(
                &passwords,
                "alice:$2b$04$F9yWkqe3hQaCiRaBverdTuGp0d25nU165hH8Bt0DWgBpfNMyQMcNS\n",
            )
            .unwrap();
            config += &format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                passwords.display()
            );
        }
        let path = root.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let log = File::create(root.path().join("access.log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            address,
            root,
            process,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Copies the image of a layout to `name:tag`; gives its reference.
    pub(crate) fn push(&self, layout: &Layout, name: &str, options: &[&str]) -> String {
        let reference = format!("{}/{name}", self.address);
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .args(options)
            .arg(format!("oci:{}:v1", layout.dir.display()))
            .arg(format!("docker://{reference}")));
        reference
    }

    /// Puts a document under a tag, as it is.
    pub(crate) fn put_manifest(&self, name: &str, tag: &str, media_type: &str, body: &str) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "PUT /v2/{name}/manifests/{tag} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    /// The requests so far, such as `GET /v2/app/manifests/v1`.
    pub(crate) fn requests(&self) -> Vec<String> {
        // The log is written after the answer.
        std::thread::sleep(Duration::from_millis(100));
        let log = File::open(self.root.path().join("access.log")).unwrap();
        BufReader::new(log)
            .lines()
            .filter_map(|line| Some(line.unwrap().split('"').nth(1)?.rsplit_once(' ')?.0.to_owned()))
            .collect()
    }

    /// The file in which the registry keeps a blob.
    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.root.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A loopback address on which nobody listens.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

/// A registry that answers whatever a script says: from the request's head to the bytes of the answer.
pub(crate) struct Scripted {
    pub(crate) address: String,
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    pub(crate) fn start(script: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (script, seen) = (Arc::new(script), Arc::clone(&requests));
        // Ends with the test program.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, script, seen) = (stream.unwrap(), Arc::clone(&script), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    seen.lock().unwrap().push(head.clone());
                    script(&head, &mut stream);
                });
            }
        });
        Self { address, requests }
    }
}

/// An answer with these headers (each ends with `\r\n`) and this body.
pub(crate) fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The documents and blobs of a layout, as a registry would give them; `None` for what is not there.
pub(crate) fn serve(layout: &Layout, head: &str) -> Option<Vec<u8>> {
    let path = head.split(' ').nth(1)?;
    let manifest = path.contains("/manifests/");
    let hex = if path.ends_with("/v1") {
        layout.manifest.hex()
    } else {
        path.rsplit_once(':')?.1.to_owned()
    };
    let body = std::fs::read(layout.dir.join("blobs/sha256").join(hex)).ok()?;
    let kind = if manifest {
        "application/vnd.oci.image.manifest.v1+json"
    } else {
        "application/octet-stream"
    };
    Some(answer("200 OK", &format!("Content-Type: {kind}\r\n"), &body))
}

/// What can be seen of one entry of a tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) links: u64,
    pub(crate) time: i64,
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path with the same inode.
    pub(crate) same_as: PathBuf,
}

/// Everything in a tree, by path; of directories, the number of links is left out, as it depends on the file system.
pub(crate) fn see(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    let mut paths = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                folders.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let it = path.symlink_metadata().unwrap();
        let inside = path.strip_prefix(root).unwrap().to_owned();
        let content = if it.is_symlink() {
            fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else if it.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let xattrs = xattr::list(&path)
            .unwrap()
            .filter_map(|name| {
                let value = xattr::get(&path, &name).unwrap()?;
                Some((name.into_string().unwrap(), value))
            })
            .collect();
        let same_as = inodes.entry(it.ino()).or_insert_with(|| inside.clone()).clone();
        let links = if it.is_dir() { 0 } else { it.nlink() };
        let view = Seen {
            mode: it.mode(),
            owner: (it.uid(), it.gid()),
            links,
            time: it.mtime(),
            content,
            xattrs,
            same_as,
        };
        seen.insert(inside, view);
    }
    seen
}

/// An EROFS file mounted on a folder until dropped; none, said loudly, where mounting is not permitted.
pub(crate) struct Mounted(pub(crate) tempfile::TempDir);

impl Mounted {
    pub(crate) fn new(image: &Path) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro,nodev,nosuid"])
            .arg(image)
            .arg(at.path())
            .output()
            .unwrap();
        if !output.status.success() {
            eprintln!(
                "SKIPPED: cannot mount here: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// What a store has on disk, without its lock: names relative to its folder.
pub(crate) fn files_of(store: &Path) -> Vec<String> {
    let mut names: Vec<_> = see(store)
        .into_iter()
        .filter(|(path, seen)| seen.links > 0 && path != Path::new("lock"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    names.sort();
    names
}

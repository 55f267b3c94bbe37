//! Readers and writers that a rotation comes upon.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;

/// Time for a rotation that nobody holds back.
const WHILE: Duration = Duration::from_millis(300);

/// Holds one call, once it is armed: says that it came, and waits for the word to go on.
#[derive(Default)]
struct Gate(Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>);

impl Gate {
    fn arm(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((come, came), (go, gone)) = (oneshot::channel(), oneshot::channel());
        *self.0.lock().unwrap() = Some((come, gone));
        (came, go)
    }

    async fn pass(&self) {
        let armed = self.0.lock().unwrap().take();
        if let Some((come, gone)) = armed {
            come.send(()).unwrap();
            gone.await.unwrap();
        }
    }
}

/// A store with a gate behind what is read, and one before what is written.
struct Gated {
    store: SqliteStore,
    read: Arc<Gate>,
    write: Arc<Gate>,
}

impl Store for Gated {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let (sealed, entry) = (key.starts_with("sealed/"), self.store.get(key));
        Box::pin(async move {
            let entry = entry.await;
            if sealed {
                self.read.pass().await;
            }
            entry
        })
    }
    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        self.store.list(prefix)
    }
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            self.write.pass().await;
            self.store.commit(transaction).await
        })
    }
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxFuture<'_, Result<mpsc::UnboundedReceiver<Change>, StoreError>> {
        self.store.watch(prefix, from)
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.store.revision()
    }
}

async fn gated(world: &World) -> (SecretStore, Arc<Gate>, Arc<Gate>) {
    let (read, write) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let store = Gated {
        store: SqliteStore::open(&world.dir.path().join("state.db")).unwrap(),
        read: Arc::clone(&read),
        write: Arc::clone(&write),
    };
    let store = world.try_open(Records::new(Arc::new(store))).await.unwrap();
    (store, read, write)
}

#[tokio::test]
async fn a_reader_that_a_rotation_overtakes_reads_again() {
    let world = World::new();
    let (store, gate, _) = gated(&world).await;
    store.put_parameter(put("a", CLEAR)).await.unwrap();
    let (came, go) = gate.arm();
    let rotation = async {
        came.await.unwrap();
        store.rotate().await.unwrap();
        go.send(()).unwrap();
    };
    let (value, ()) = tokio::join!(read(&store, "a"), rotation);
    assert_eq!(value, CLEAR);
}

#[tokio::test]
async fn no_key_is_dropped_that_a_value_under_way_is_sealed_with() {
    let world = World::new();
    let (store, _, gate) = gated(&world).await;
    store.put_parameter(put("a", "old")).await.unwrap();
    for secret in [false, true] {
        let (came, go) = gate.arm();
        let writer = async {
            match secret {
                false => drop(store.put_parameter(put("a", CLEAR)).await.unwrap()),
                true => drop(
                    store
                        .create_secret(create("s", Some(value("1", CLEAR))))
                        .await
                        .unwrap(),
                ),
            }
        };
        let rotation = async {
            came.await.unwrap();
            let rotation = store.rotate();
            tokio::pin!(rotation);
            // Where nothing held it back it would be done by now.
            let done = tokio::time::timeout(WHILE, &mut rotation).await;
            go.send(()).unwrap();
            match done {
                Ok(done) => done.unwrap(),
                Err(_) => rotation.await.unwrap(),
            }
        };
        tokio::join!(writer, rotation);
    }
    assert_eq!(store.key_ids().len(), 1);
    assert_eq!(read(&store, "a").await, CLEAR);
    assert_eq!(read_secret(&store, "s", &VersionSelector::default()).await, CLEAR);
}

#[tokio::test]
async fn values_that_are_put_during_a_rotation_stay_readable() {
    let world = World::new();
    let store = world.open().await;
    for number in 0..20 {
        store
            .put_parameter(put(&format!("/{number}"), "0"))
            .await
            .unwrap();
    }
    let puts = async {
        for round in 1..5 {
            for number in 0..20 {
                store
                    .put_parameter(put(&format!("/{number}"), &round.to_string()))
                    .await
                    .unwrap();
                assert_eq!(read(&store, &format!("/{number}")).await, round.to_string());
            }
        }
    };
    let rotations = async {
        for _ in 0..5 {
            store.rotate().await.unwrap();
            assert_eq!(store.key_ids().len(), 1);
        }
    };
    tokio::join!(puts, rotations);
    for number in 0..20 {
        let name = format!("/{number}");
        for version in store.parameter_versions(&name).await.unwrap() {
            let (_, value) = store.parameter_value(&name, Some(version)).await.unwrap();
            assert_eq!(value.expose(), (version - 1).to_string());
        }
    }
}

//! Buckets and objects: put, looked up, listed, deleted. Names, sizes and types are checked by the API before they get here.

use super::{SecretBytes, SecretError, SecretStore};
use crate::model::object::{Bucket, Object};
use crate::state::keys as names;
use crate::store::{Record, Transaction};

const MAX_BUCKETS: usize = 100;
const MAX_OBJECTS: usize = 10_000;

/// What PutObject says.
#[derive(Clone, Debug)]
pub struct PutObject {
    pub bucket: String,
    pub key: String,
    pub content: SecretBytes,
    pub etag: String,
    pub content_type: Option<String>,
}

impl SecretStore {
    pub async fn create_bucket(&self, name: &str) -> Result<Bucket, SecretError> {
        let _writing = self.writing.lock().await;
        let buckets = self.buckets().await?;
        if buckets.iter().any(|bucket| bucket.name == name) {
            return Err(SecretError::BucketExists(name.to_owned()));
        }
        if buckets.len() >= MAX_BUCKETS {
            return Err(SecretError::BucketLimit(buckets.len()));
        }
        let bucket = Bucket {
            name: name.to_owned(),
            created_at: self.clock.now(),
        };
        let transaction = Transaction::default().create(names::bucket(name), &bucket)?;
        self.records.commit(transaction).await?;
        Ok(bucket)
    }

    /// All buckets, by name.
    pub async fn buckets(&self) -> Result<Vec<Bucket>, SecretError> {
        let records = self.records.list(names::BUCKETS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    pub async fn bucket(&self, name: &str) -> Result<Bucket, SecretError> {
        let record = self.records.get(&names::bucket(name)).await?;
        let record: Record<Bucket> = record.ok_or_else(|| SecretError::BucketNotFound(name.to_owned()))?;
        Ok(record.value)
    }

    /// Only an empty one.
    pub async fn delete_bucket(&self, name: &str) -> Result<(), SecretError> {
        let _writing = self.writing.lock().await;
        self.bucket(name).await?;
        if !self
            .records
            .store()
            .list(&names::objects_of(name))
            .await?
            .is_empty()
        {
            return Err(SecretError::BucketNotEmpty(name.to_owned()));
        }
        let transaction = Transaction::default().delete(names::bucket(name));
        self.records.commit(transaction).await?;
        Ok(())
    }

    /// Over what has that key already.
    pub async fn put_object(&self, put: PutObject) -> Result<Object, SecretError> {
        let _writing = self.writing.lock().await;
        self.bucket(&put.bucket).await?;
        let key = names::object(&put.bucket, &put.key);
        if self.records.store().get(&key).await?.is_none() {
            let there = self.records.store().list(names::OBJECTS).await?.len();
            if there >= MAX_OBJECTS {
                return Err(SecretError::ObjectLimit(there));
            }
        }
        let content = put.content.expose();
        let object = Object {
            bytes: u64::try_from(content.len()).unwrap_or(u64::MAX),
            etag: put.etag,
            content_type: put.content_type,
            modified_at: self.clock.now(),
            bucket: put.bucket,
            key: put.key,
        };
        let sealed_key = names::sealed_object(&object.bucket, &object.key);
        let transaction = self.put_sealed(Transaction::default(), sealed_key, content, &object)?;
        self.records.commit(transaction.put(key, &object)?).await?;
        Ok(object)
    }

    /// The objects of a bucket, by key.
    pub async fn objects(&self, bucket: &str) -> Result<Vec<Object>, SecretError> {
        self.bucket(bucket).await?;
        let records = self.records.list(&names::objects_of(bucket)).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    pub async fn object(&self, bucket: &str, key: &str) -> Result<(Object, SecretBytes), SecretError> {
        self.bucket(bucket).await?;
        let found = self.get_sealed(&names::sealed_object(bucket, key)).await?;
        found.ok_or_else(|| SecretError::ObjectNotFound {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }

    /// One that is not there is deleted, too.
    pub async fn delete_object(&self, bucket: &str, key: &str) -> Result<(), SecretError> {
        let _writing = self.writing.lock().await;
        self.bucket(bucket).await?;
        let transaction = Transaction::default()
            .delete(names::object(bucket, key))
            .delete(names::sealed_object(bucket, key));
        self.records.commit(transaction).await?;
        Ok(())
    }
}

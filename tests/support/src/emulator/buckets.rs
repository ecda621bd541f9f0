//! The buckets of an emulator.

use std::collections::BTreeMap;

use anyhow::Result;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};

use super::queues::unique;

/// Creates buckets on an endpoint, and looks into them.
#[derive(Debug, Clone)]
pub struct Buckets {
    client: Client,
}

impl Buckets {
    /// Buckets behind an endpoint.
    pub fn new(endpoint: &str) -> Buckets {
        let configuration = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(endpoint)
            .force_path_style(true)
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .build();
        Buckets { client: Client::from_conf(configuration) }
    }

    /// A name that no other test uses.
    pub fn name(base: &str) -> String {
        unique(base)
    }

    /// Creates a bucket of exactly this name.
    pub async fn create(&self, name: &str) -> Result<()> {
        self.client.create_bucket().bucket(name).send().await?;
        Ok(())
    }

    /// The objects of a bucket, by their keys.
    pub async fn contents(&self, name: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let listed = self.client.list_objects_v2().bucket(name).send().await?;
        for key in listed.contents().iter().filter_map(|object| object.key()) {
            found.insert(key.to_owned(), self.object(name, key).await?);
        }
        Ok(found)
    }

    /// One object of a bucket.
    pub async fn object(&self, name: &str, key: &str) -> Result<Vec<u8>> {
        let object = self.client.get_object().bucket(name).key(key).send().await?;
        Ok(object.body.collect().await?.to_vec())
    }
}

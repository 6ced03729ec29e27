//! What a store must allow us, for those who write its policies. What is here is what [`super`] and `upload` ask for, and no more.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use super::same_spelling;

/// What one bucket must allow.
#[derive(Debug, Serialize)]
pub struct Rights {
    /// Scheme and name of the bucket.
    pub bucket: String,
    /// In words.
    pub needs: String,
    /// The same as a policy of AWS, where it is a bucket of S3.
    pub policy: Option<Value>,
}

/// What passes need for tables at these locations; those of this host need nothing here. `key` is that of an encryption by KMS.
pub fn rights(locations: &[String], key: Option<&str>) -> Vec<Rights> {
    let mut prefixes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for location in locations {
        let location = same_spelling(location);
        let Some((scheme, rest)) = location.split_once("://") else { continue };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        prefixes.entry(format!("{scheme}://{bucket}")).or_default().insert(prefix.trim_matches('/').to_owned());
    }
    prefixes.into_iter().map(|(bucket, prefixes)| of_bucket(bucket, &outermost(&prefixes), key)).collect()
}

/// Those that lie in no other one.
fn outermost(prefixes: &BTreeSet<String>) -> Vec<&str> {
    let lies_in = |prefix: &str, other: &str| {
        prefix != other && (other.is_empty() || prefix.strip_prefix(other).is_some_and(|rest| rest.starts_with('/')))
    };
    let is_outermost = |prefix: &&String| !prefixes.iter().any(|other| lies_in(prefix, other));
    prefixes.iter().filter(is_outermost).map(String::as_str).collect()
}

fn of_bucket(bucket: String, prefixes: &[&str], key: Option<&str>) -> Rights {
    match bucket.split_once("://") {
        Some(("s3", name)) => {
            let needs = "get, put, list and delete objects, abort uploads".to_owned();
            Rights { policy: Some(policy(name, prefixes, key)), needs, bucket }
        }
        Some(("gs", _)) => {
            let needs = "storage.objects.get, .create, .delete and .list, as in roles/storage.objectUser".to_owned();
            Rights { bucket, needs, policy: None }
        }
        _ => {
            let needs = "read, write, list and delete blobs, as the role Storage Blob Data Contributor may; of a SAS token: rwdl".to_owned();
            Rights { bucket, needs, policy: None }
        }
    }
}

fn policy(bucket: &str, prefixes: &[&str], key: Option<&str>) -> Value {
    let objects = |prefix: &&str| match prefix.is_empty() {
        true => format!("arn:aws:s3:::{bucket}/*"),
        false => format!("arn:aws:s3:::{bucket}/{prefix}/*"),
    };
    let mut statements = vec![
        json!({
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": prefixes.iter().map(objects).collect::<Vec<_>>(),
        }),
        // Without a condition on prefixes: under one, S3 answers 403 for an object that is not there.
        json!({"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [format!("arn:aws:s3:::{bucket}")]}),
    ];
    if let Some(key) = key.filter(|key| key.starts_with("arn:")) {
        let actions = ["kms:GenerateDataKey", "kms:Decrypt"];
        statements.push(json!({"Effect": "Allow", "Action": actions, "Resource": [key]}));
    }
    json!({"Version": "2012-10-17", "Statement": statements})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_has_one_policy_for_its_outermost_prefixes() {
        let locations = ["s3://b/w", "s3a://b/w/cold/t", "s3://b/other", "s3://c", "/local", "gs://g/w", "name"];
        let rights = rights(&locations.map(str::to_owned), Some("arn:aws:kms:x"));
        let buckets: Vec<_> = rights.iter().map(|rights| rights.bucket.as_str()).collect();
        assert_eq!(buckets, ["gs://g", "s3://b", "s3://c"]);
        let resources = |at: usize, statement: usize| {
            rights[at].policy.as_ref().unwrap()["Statement"][statement]["Resource"].clone()
        };
        assert_eq!(resources(1, 0), json!(["arn:aws:s3:::b/other/*", "arn:aws:s3:::b/w/*"]));
        assert_eq!(resources(1, 1), json!(["arn:aws:s3:::b"]));
        assert_eq!(resources(2, 0), json!(["arn:aws:s3:::c/*"]));
        assert_eq!(resources(2, 2), json!(["arn:aws:kms:x"]));
    }
}

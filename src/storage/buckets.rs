//! The clients of object stores: one for each bucket, and for each location that a catalog lends credentials for.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, CredentialProvider, MultipartId, ObjectStore, ObjectStoreExt,
    RetryConfig, StaticCredentialProvider,
};

use super::errors::{Access, Missing, NoCredentials, was_cut};
use super::profile::Files;
use super::same_spelling;
use crate::config::{Secret, Storage};
use crate::error::{Classify, Context, Error, Kind, Result};

/// Tries of a request after the first. A pass tries a table again on top of them.
const RETRIES: usize = 5;
const BACKOFF: BackoffConfig =
    BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };

/// Variables that hold a secret of a store.
const SECRET_VARIABLES: [&str; 7] = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CLIENT_SECRET",
];
/// Variables that say that keys for S3 can be fetched, and where.
const FETCHED_FROM: [&str; 4] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
];

/// Where the keys for S3 are.
enum Keys {
    /// The builder has them; those of them that were read from a file.
    Known(Vec<Secret>),
    /// The client fetches them, and others when they expire.
    Fetched,
}

/// Keys of a role or a web identity: that there are none is no error of the store.
#[derive(Debug)]
struct Fetched {
    provider: AwsCredentialProvider,
    is_expected: bool,
}

#[async_trait]
impl CredentialProvider for Fetched {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.provider.get_credential().await.map_err(|cause| {
            let missing = NoCredentials { is_expected: self.is_expected, cause };
            object_store::Error::Generic { store: "S3", source: Box::new(missing) }
        })
    }
}

/// A bucket, or what stands for one.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub store: Arc<dyn ObjectStore>,
    pub parts: Arc<dyn Parts>,
    pub access: Arc<Access>,
}

/// [`MultipartStore`] that can be printed.
pub(super) trait Parts: MultipartStore + std::fmt::Debug {}
impl<T: MultipartStore + std::fmt::Debug> Parts for T {}

impl Bucket {
    fn of<T: ObjectStore + Parts>(store: T, access: Access) -> Self {
        let store = Arc::new(store);
        Self { store: store.clone(), parts: store, access: Arc::new(access) }
    }
}

/// An upload in parts that is neither finished nor given up.
#[derive(Debug)]
pub(super) struct Begun {
    pub bucket: Bucket,
    pub key: Key,
    pub id: MultipartId,
}

type Properties = BTreeMap<String, Secret>;

/// All clients of a pass, made when they are needed.
#[derive(Debug)]
pub(super) struct Buckets {
    config: Storage,
    /// By scheme and bucket, or by the prefix that credentials are lent for.
    clients: Mutex<HashMap<String, Bucket>>,
    /// By prefix.
    lent: Mutex<BTreeMap<String, Properties>>,
    /// By location.
    uploads: Mutex<HashMap<String, Begun>>,
}

/// Nothing that a panic could leave half done stands behind these locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buckets {
    pub(super) fn new(config: Storage) -> Self {
        Self { config, clients: Mutex::default(), lent: Mutex::default(), uploads: Mutex::default() }
    }

    /// Replaces what was lent for `prefix`.
    pub(super) fn lend(&self, prefix: &str, properties: Properties) {
        let prefix = same_spelling(prefix);
        let text = |properties: &Properties| -> Vec<(String, String)> {
            properties.iter().map(|(key, value)| (key.clone(), value.expose().to_owned())).collect()
        };
        let mut lent = locked(&self.lent);
        if lent.get(&prefix).is_some_and(|before| text(before) == text(&properties)) {
            return;
        }
        locked(&self.clients).remove(&prefix);
        lent.insert(prefix, properties);
    }

    /// The client for a location, and its key there.
    pub(super) fn find(&self, location: &str) -> Result<(Bucket, Key)> {
        let spelled = same_spelling(location);
        let (root, key) = split(&spelled)?;
        let key = Key::parse(key).or_error(Kind::Refused, format!("use {location}"))?;
        let lent = locked(&self.lent);
        let lender = lent.iter().filter(|(prefix, _)| spelled.starts_with(prefix.as_str()));
        let lender = lender.max_by_key(|(prefix, _)| prefix.len());
        let name = lender.map_or(root, |(prefix, _)| prefix.as_str());
        let mut clients = locked(&self.clients);
        if let Some(bucket) = clients.get(name) {
            return Ok((bucket.clone(), key));
        }
        let no_properties = Properties::new();
        let settings = Settings { config: &self.config, lent: lender.map_or(&no_properties, |(_, lent)| lent) };
        let bucket = settings.bucket(root)?;
        clients.insert(name.to_owned(), bucket.clone());
        Ok((bucket, key))
    }

    pub(super) async fn read(&self, location: &str) -> Result<Bytes, Missing> {
        let (bucket, key) = self.find(location)?;
        let failed = |e| bucket.access.missing("read", location, e);
        bucket.store.get(&key).await.map_err(failed)?.bytes().await.map_err(failed)
    }

    pub(super) async fn read_range(&self, location: &str, range: Range<u64>) -> Result<Bytes, Missing> {
        let (bucket, key) = self.find(location)?;
        bucket.store.get_range(&key, range).await.map_err(|e| bucket.access.missing("read", location, e))
    }

    /// The size of an object.
    pub(super) async fn head(&self, location: &str) -> Result<u64, Missing> {
        let (bucket, key) = self.find(location)?;
        let head = bucket.store.head(&key).await;
        head.map(|object| object.size).map_err(|e| bucket.access.missing("look at", location, e))
    }

    /// Deletes an object, and gives up what was begun of it.
    pub(super) async fn delete(&self, location: &str) -> Result<()> {
        let begun = locked(&self.uploads).remove(location);
        if let Some(Begun { bucket, key, id }) = begun
            && let Err(error) = gone(|| Box::pin(bucket.parts.abort_multipart(&key, &id))).await
        {
            let error = bucket.access.failed("give up the upload of", location, error);
            tracing::warn!(%error, "parts of a file were left behind; a lifecycle rule of the bucket deletes them");
        }
        let (bucket, key) = self.find(location)?;
        let deleted = gone(|| Box::pin(bucket.store.delete(&key))).await;
        deleted.map_err(|e| bucket.access.failed("delete", location, e))
    }

    pub(super) fn begun(&self, location: &str, begun: Begun) {
        locked(&self.uploads).insert(location.to_owned(), begun);
    }

    pub(super) fn id_of(&self, location: &str) -> Option<MultipartId> {
        locked(&self.uploads).get(location).map(|begun| begun.id.clone())
    }

    pub(super) fn forget(&self, location: &str) {
        locked(&self.uploads).remove(location);
    }
}

/// Deletes what may be gone already. The client repeats neither DELETE nor the POST that S3 has for many objects where an answer is lost; repeated,
/// they do what they did.
async fn gone<'a>(
    delete: impl Fn() -> BoxFuture<'a, object_store::Result<()>> + Send + Sync,
) -> object_store::Result<()> {
    for attempt in 0..=RETRIES {
        match delete().await {
            Err(object_store::Error::NotFound { .. }) => break,
            Err(error) if attempt < RETRIES && was_cut(&error) => {}
            result => return result,
        }
    }
    Ok(())
}

/// Scheme and bucket of a location, and the key in it.
fn split(location: &str) -> Result<(&str, &str)> {
    let start = location.find("://").map(|at| at + 3).filter(|at| *at < location.len());
    let start = start.ok_or_else(|| {
        Error::refused(format!("location `{location}` is neither a local file nor an object"))
            .hint("this version knows file://, s3://, gs:// and abfss://")
    })?;
    let (_, rest) = location.split_at(start);
    let length = rest.find('/').unwrap_or(rest.len());
    let (root, key) = location.split_at(start + length);
    Ok((root, key.trim_start_matches('/')))
}

/// What a client is made of.
struct Settings<'a> {
    config: &'a Storage,
    lent: &'a Properties,
}

impl Settings<'_> {
    /// A property of Iceberg: lent, or configured.
    fn get(&self, key: &str) -> Option<&str> {
        let lent = self.lent.get(key).map(Secret::expose);
        lent.or_else(|| self.config.properties.get(key).map(String::as_str))
    }

    fn is_true(&self, key: &str) -> Option<bool> {
        self.get(key).map(|text| text.eq_ignore_ascii_case("true"))
    }

    fn bucket(&self, root: &str) -> Result<Bucket> {
        let scheme = root.split_once("://").map_or("", |(scheme, _)| scheme);
        let made = match scheme {
            "s3" => self.s3(root)?,
            "gs" => self.google(root)?.build().map(|store| Bucket::of(store, self.access(false))),
            "abfs" | "abfss" | "wasb" | "wasbs" | "az" => {
                self.azure(root)?.build().map(|store| Bucket::of(store, self.access(false)))
            }
            scheme => {
                return Err(Error::refused(format!("this version does not know `{scheme}://` locations"))
                    .hint("it knows file://, s3://, gs:// and abfss://"));
            }
        };
        made.map_err(|e| {
            // Errors of builders name what is missing or wrong, and no value.
            Error::new(Kind::Config, e).context(format!("set up access to {root}")).hint(
                "see catalog.properties and the variables of the environment: AWS_, GOOGLE_ or AZURE_ and what follows",
            )
        })
    }

    fn client(&self, endpoint: Option<&str>) -> Result<ClientOptions> {
        let mut options = ClientOptions::new()
            .with_allow_http(endpoint.is_some_and(|url| url.starts_with("http://")))
            .with_connect_timeout(self.config.connect_timeout)
            .with_timeout(self.config.timeout);
        let certificates = self.config.ca_file.as_deref().map(crate::tls::certificates).transpose();
        let certificates = certificates.context_with(|| "catalog.ca_file")?;
        for certificate in certificates.unwrap_or_default() {
            options = options
                .with_root_certificate(Certificate::from_der(&certificate).or_error(Kind::Config, "catalog.ca_file")?);
        }
        Ok(options)
    }

    /// A server that lets every connection wait is given up after some of them, not after [`RETRIES`].
    fn retry(&self) -> RetryConfig {
        let retry_timeout = self.config.timeout.min(2 * self.config.connect_timeout);
        RetryConfig { backoff: BACKOFF, max_retries: RETRIES, retry_timeout }
    }

    /// With all that is secret in what was lent and in the environment; `is_renewed` where credentials of our own are other ones the next time.
    fn access(&self, is_renewed: bool) -> Access {
        let is_secret = |key: &str| ["secret", "token", "account-key"].iter().any(|part| key.contains(part));
        let lent = self.lent.iter().filter(|(key, _)| is_secret(key)).map(|(_, value)| value.clone());
        let environment = SECRET_VARIABLES.iter().filter_map(|name| std::env::var(name).ok()).map(Secret::new);
        Access { is_renewed: is_renewed || !self.lent.is_empty(), secrets: lent.chain(environment).collect() }
    }

    fn s3(&self, root: &str) -> Result<object_store::Result<Bucket>> {
        let (builder, keys) = self.s3_credentials(self.s3_place(root)?)?;
        let mut access = self.access(matches!(keys, Keys::Fetched));
        let is_set = |name: &str| std::env::var_os(name).is_some();
        let store = match keys {
            Keys::Known(secrets) => {
                access.secrets.extend(secrets);
                builder.build()
            }
            // Else an instance's role would be asked, which is another one.
            Keys::Fetched
                if is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
                    && !is_set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") =>
            {
                return Err(Error::new(
                    Kind::Config,
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI is set without AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                )
                .hint("this version knows the two together, as on EKS, and AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, as on ECS"));
            }
            // Who knows the keys is decided when it is built.
            Keys::Fetched => builder.clone().build().and_then(|store| {
                let is_expected = FETCHED_FROM.into_iter().any(is_set);
                let fetched = Fetched { provider: store.credentials().clone(), is_expected };
                builder.with_credentials(Arc::new(fetched)).build()
            }),
        };
        Ok(store.map(|store| Bucket::of(store, access)))
    }

    fn s3_place(&self, root: &str) -> Result<AmazonS3Builder> {
        let mut builder = AmazonS3Builder::from_env().with_url(root).with_retry(self.retry());
        let endpoint = self.get("s3.endpoint").map(str::to_owned);
        let endpoint = endpoint.or_else(|| std::env::var("AWS_ENDPOINT_URL_S3").ok());
        let endpoint = endpoint.or_else(|| std::env::var("AWS_ENDPOINT_URL").ok());
        builder = builder.with_client_options(self.client(endpoint.as_deref())?);
        let path_style = self.is_true("s3.path-style-access").unwrap_or(endpoint.is_some());
        builder = builder.with_virtual_hosted_style_request(!path_style);
        if let Some(endpoint) = endpoint {
            let bucket = root.trim_start_matches("s3://");
            builder = builder.with_endpoint(match (path_style, endpoint.split_once("://")) {
                // The client takes an endpoint with the bucket in its name as it is.
                (false, Some((scheme, host))) => format!("{scheme}://{bucket}.{host}"),
                _ => endpoint,
            });
        }
        if let Some(region) = self.get("s3.region").or_else(|| self.get("client.region")) {
            builder = builder.with_region(region);
        }
        if self.is_true("s3.checksum-enabled") == Some(true) {
            builder = builder.with_checksum_algorithm(Checksum::SHA256);
        }
        builder = match (self.get("s3.sse.type"), self.get("s3.sse.key")) {
            (Some("s3"), _) => {
                let key = "aws_server_side_encryption".parse::<AmazonS3ConfigKey>();
                builder.with_config(key.or_error(Kind::Internal, "ask for encryption")?, "AES256")
            }
            (Some("kms"), Some(key)) => builder.with_sse_kms_encryption(key),
            (Some("dsse-kms"), Some(key)) => builder.with_dsse_kms_encryption(key),
            _ => builder,
        };
        // As AWS' own clients call it.
        if let Ok(endpoint) = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
            builder = builder.with_metadata_endpoint(endpoint.trim_end_matches('/'));
        }
        Ok(builder)
    }

    /// Lent by the catalog; else from the file or profile that the configuration names; else from the environment, a shared file, a web identity
    /// or the role of an instance.
    fn s3_credentials(&self, builder: AmazonS3Builder) -> Result<(AmazonS3Builder, Keys)> {
        let lent = |key: &str| self.lent.get(key).map(Secret::expose);
        if let (Some(id), Some(key)) = (lent("s3.access-key-id"), lent("s3.secret-access-key")) {
            let builder = builder.with_access_key_id(id).with_secret_access_key(key);
            // Without a token of its own, one of the environment would go with foreign keys.
            return Ok((builder.with_token(lent("s3.session-token").unwrap_or_default()), Keys::Known(Vec::new())));
        }
        let variable = |name: &str| std::env::var(name).ok();
        let (file, profile) = (self.get("s3.credentials-file"), self.get("s3.profile-name"));
        let is_named = file.is_some() || profile.is_some();
        if !is_named && variable("AWS_ACCESS_KEY_ID").is_some() {
            return Ok((builder, Keys::Known(Vec::new())));
        }
        if !is_named && variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
            return Ok((builder, Keys::Fetched));
        }
        let named = profile.map(str::to_owned).or_else(|| variable("AWS_PROFILE"));
        let name = named.clone().unwrap_or_else(|| "default".to_owned());
        match Files::of_environment(file, variable).find(&name)? {
            Some(found) => {
                let builder = builder.with_access_key_id(found.key_id).with_secret_access_key(found.key.expose());
                let builder = builder.with_token(found.token.as_ref().map(Secret::expose).unwrap_or_default());
                let given = self.get("s3.region").or_else(|| self.get("client.region")).is_some();
                let builder = match found.region.filter(|_| !given) {
                    Some(region) => builder.with_region(region),
                    None => builder,
                };
                Ok((builder, Keys::Known([found.key].into_iter().chain(found.token).collect())))
            }
            None if is_named || named.is_some() => {
                Err(Error::new(Kind::Config, format!("there is no profile `{name}` of AWS"))
                    .hint("correct \"s3.profile-name\", \"s3.credentials-file\" or AWS_PROFILE"))
            }
            None => Ok((builder, Keys::Fetched)),
        }
    }

    fn google(&self, root: &str) -> Result<GoogleCloudStorageBuilder> {
        let host = self.get("gcs.service.host");
        let mut builder = GoogleCloudStorageBuilder::from_env().with_url(root).with_retry(self.retry());
        builder = builder.with_client_options(self.client(host)?);
        if let Some(host) = host {
            builder = builder.with_base_url(host);
        }
        if let Some(token) = self.get("gcs.oauth2.token") {
            let credential = GcpCredential { bearer: token.to_owned() };
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
        } else if let Some(file) = self.get("gcs.credentials-file") {
            builder = builder.with_service_account_path(file);
        }
        Ok(builder)
    }

    fn azure(&self, root: &str) -> Result<MicrosoftAzureBuilder> {
        let endpoint = self.get("adls.endpoint").map(str::to_owned);
        let mut builder = MicrosoftAzureBuilder::from_env().with_url(root).with_retry(self.retry());
        builder = builder.with_client_options(self.client(endpoint.as_deref())?);
        let named = self.get("adls.account-name").map(str::to_owned);
        // container@account.host
        let account = root.split_once('@').and_then(|(_, host)| host.split('.').next()).map(str::to_owned);
        if let Some(account) = named.or_else(|| account.clone()) {
            builder = builder.with_account(account);
        }
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let host = root.split_once('@').map(|(_, host)| host).unwrap_or_default();
        let sas = ["adls.sas-token", &format!("adls.sas-token.{host}")].map(|key| self.get(key));
        let of_account = account.and_then(|account| self.get(&format!("adls.sas-token.{account}")));
        if let Some(token) = sas.into_iter().flatten().next().or(of_account) {
            builder = builder.with_config(AzureConfigKey::SasKey, token);
        }
        Ok(builder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(properties: &[(&str, &str)]) -> Buckets {
        let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let timeout = Duration::from_secs(1);
        Buckets::new(Storage { properties, ca_file: None, connect_timeout: timeout, timeout })
    }

    #[test]
    fn locations_are_split_at_the_bucket() {
        assert_eq!(split("s3://b/a/c").unwrap(), ("s3://b", "a/c"));
        assert_eq!(split("s3://b").unwrap(), ("s3://b", ""));
        assert_eq!(split("abfss://c@a.dfs.core.windows.net/k").unwrap(), ("abfss://c@a.dfs.core.windows.net", "k"));
        assert!(split("warehouse").is_err() && split("s3://").is_err());
    }

    #[test]
    fn names_are_kept_as_they_are() {
        let key =
            buckets(&[("s3.endpoint", "http://h")]).find("s3a://b/t/data/exchange=a%2Fb%7B/x y.parquet").unwrap().1;
        assert_eq!(key.as_ref(), "t/data/exchange=a%2Fb%7B/x y.parquet");
    }

    #[test]
    fn what_is_lent_counts_for_its_prefix_until_it_is_replaced() {
        let buckets = buckets(&[("s3.endpoint", "http://h"), ("s3.credentials-file", "/nowhere")]);
        assert_eq!(
            buckets.find("s3://b/t/x").unwrap_err().kind(),
            Kind::Config,
            "nothing is lent, and there is no file"
        );
        let secret = |text: &str| Secret::new(text.to_owned());
        let lend = |id: &str| {
            let keys = [("s3.access-key-id", id), ("s3.secret-access-key", "s3cret")];
            buckets.lend("s3a://b/t/", keys.map(|(key, value)| (key.to_owned(), secret(value))).into());
        };
        lend("A");
        let first = buckets.find("s3://b/t/x").unwrap().0;
        lend("A");
        assert!(Arc::ptr_eq(&first.store, &buckets.find("s3://b/t/y").unwrap().0.store));
        lend("B");
        assert!(!Arc::ptr_eq(&first.store, &buckets.find("s3://b/t/y").unwrap().0.store));
        assert!(buckets.find("s3://b/other").is_err());
        assert!(!format!("{buckets:?}").contains("s3cret"));
    }
}

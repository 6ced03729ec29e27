//! A catalog behind Iceberg's REST protocol.
//!
//! iceberg's own client commits through `Transaction`, which re-applies on whatever is current, and keeps token and prefix to itself; so this
//! is ours. It asks and answers; what a table means is [`super`]'s and `commit`'s business.
//!
//! - **Rejected, done or unknown** (protocol.md P14): [`errors::verdict`] sorts every answer, [`http::Unanswered`] what came instead of one.
//!   A change goes out again by itself only where it was certainly not begun: after a 401 with a new token, after a 429.
//! - **No secret in an error**: messages of servers are searched for ours, URLs and bodies do not show.

mod auth;
mod errors;
mod http;
mod protocol;
mod served;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;

use chrono::Utc;
use iceberg::TableUpdate;
use iceberg::spec::TableMetadata;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use serde_json::Value;
use uuid::Uuid;

use self::auth::Session;
use self::errors::{Verdict, clock_ahead, hint, kind, no_such_table, verdict};
use self::http::{Answer, Transport, Unanswered};
pub use self::protocol::{Loaded, Vended, is_past};
use self::protocol::{
    commit_table, create_namespace, create_table, read_staged, read_table, register_table, vain_commit,
};
use self::served::{
    CREATE_TABLE, LIST_NAMESPACES, LOAD_TABLE, Paths, REGISTER_TABLE, Served, UPDATE_TABLE, config_url,
    is_other_location, levels, shown,
};
use super::SwapError;
use crate::config::{Rest as Config, TableName};
use crate::error::{Classify, Context, Error, Kind, Result};
use crate::failpoint::{self, Action, Failpoint};

/// Asks for credentials of the table's storage, unless the user's headers say otherwise.
const ACCESS_DELEGATION: (HeaderName, &str) =
    (HeaderName::from_static("x-iceberg-access-delegation"), "vended-credentials");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Who answers, in errors.
const CATALOG: &str = "the catalog";

/// A connected catalog.
pub struct Rest {
    transport: Transport,
    session: Session,
    headers: HeaderMap,
    paths: Paths,
    served: Served,
}

/// What a commit came to.
#[derive(Debug)]
pub enum Committed {
    /// Done; the table as the server answered.
    Done(Box<Loaded>),
    /// Certainly not done: the table is not what the commit was built on.
    Stale,
}

/// What is known of a table by now.
#[derive(Debug)]
pub enum Found {
    /// There is none.
    Nothing,
    /// What it was when the ETag was given.
    Same,
    /// This.
    Table(Box<Loaded>),
}

/// A request; a change where it has a body.
struct Request<'a> {
    method: Method,
    url: String,
    body: Option<&'a Value>,
    header: Option<(HeaderName, String)>,
}

impl Rest {
    /// Fetches the catalog's configuration, and a token before that where the client fetches its tokens.
    pub async fn connect(config: &Config, warehouse: &str) -> Result<Self> {
        let ours = served::ours(&config.properties, &config.headers);
        let mut rest = Self {
            transport: Transport::new(config)?,
            session: Session::new(&config.auth, &config.url, &ours),
            headers: headers(&ours)?,
            paths: Paths::new(&config.url, &ours),
            served: Served::default(),
        };
        rest.served = rest.configuration(&config.url, warehouse).await?;
        let merged = rest.served.merge(&ours, &config.url);
        rest.session.learn(&config.url, &merged);
        rest.headers = headers(&merged)?;
        rest.paths = Paths::new(&config.url, &merged);
        rest.need(LOAD_TABLE)?;
        rest.need(UPDATE_TABLE)?;
        match rest.served.warehouse() {
            Some(served) if is_other_location(warehouse, served) => Err(Error::refused(format!(
                "the catalog keeps its tables in {served}, not in {warehouse}"
            ))
            .hint("correct catalog.warehouse, or catalog.uri if this is another catalog than the one that was meant")),
            _ => Ok(rest),
        }
    }

    /// Loads a table unless it is still what it was when the server gave this ETag. Credentials that came with it are not renewed then.
    pub async fn load(&self, name: &TableName, etag: Option<&str>) -> Result<Found> {
        let header = etag.map(|etag| (IF_NONE_MATCH, etag.to_owned()));
        let request = Request { method: Method::GET, url: self.paths.table(name), body: None, header };
        let answer = self.send(&request).await.map_err(Unanswered::error)?;
        match answer.status {
            304 if etag.is_some() => Ok(Found::Same),
            404 if no_such_table(&answer.told.kind) => Ok(Found::Nothing),
            _ if answer.is_success() => Ok(Found::Table(Box::new(read_table(&answer.body, answer.etag)?))),
            _ => Err(self.refusal(&answer)),
        }
    }

    /// Where the server would create a table, and what it lends for that; `None` where it does not say. Only the namespace is made, where it is
    /// missing.
    pub async fn place(
        &self,
        name: &TableName,
        new: &TableMetadata,
    ) -> Result<Option<(String, Vec<Vended>)>, SwapError> {
        let body = self.need(CREATE_TABLE).and_then(|()| create_table(name, new, true));
        let answer = self.ask_for(name, self.paths.tables(name), &body.map_err(SwapError::NotDone)?).await?;
        match verdict(answer.status, &answer.told.kind) {
            Verdict::Done => Ok(read_staged(&answer.body)),
            Verdict::Conflict | Verdict::NotDone => Ok(None),
            Verdict::Unknown => Err(SwapError::Unknown(self.refusal(&answer))),
        }
    }

    /// Creates a table with the schema, partitions, order and properties of `new`, and its namespace before that where it is missing; the
    /// server numbers fields anew. `false` where the name is taken.
    pub async fn create(&self, name: &TableName, new: &TableMetadata) -> Result<bool, SwapError> {
        let body = self.need(CREATE_TABLE).and_then(|()| create_table(name, new, false));
        self.add(name, self.paths.tables(name), &body.map_err(SwapError::NotDone)?).await
    }

    /// Adds a table over metadata that is there, and its namespace before that where it is missing; `false` where the name is taken.
    pub async fn register(&self, name: &TableName, metadata_location: &str) -> Result<bool, SwapError> {
        self.need(REGISTER_TABLE).map_err(SwapError::NotDone)?;
        self.add(name, self.paths.register(name), &register_table(name, metadata_location)).await
    }

    /// Commits `updates` if the table still is what `base` is.
    ///
    /// The key tells repetitions of this very commit from others, where the server keeps such keys: a UUIDv7, new for each other base or
    /// other updates.
    pub async fn commit(
        &self,
        name: &TableName,
        base: &TableMetadata,
        updates: &[TableUpdate],
        idempotency_key: Uuid,
    ) -> Result<Committed, SwapError> {
        let action = failpoint::hit(Failpoint::CommitSwap).map_err(SwapError::NotDone)?;
        let lost = || SwapError::Unknown(Error::new(Kind::Unavailable, "failpoint commit-swap"));
        if action == Action::RequestLost {
            return Err(lost());
        }
        let body = commit_table(name, base, updates).map_err(SwapError::NotDone)?;
        let answer = self.change(self.paths.table(name), &body, idempotency_key).await?;
        match verdict(answer.status, &answer.told.kind) {
            Verdict::Done if action == Action::ReplyLost => Err(lost()),
            Verdict::Done => {
                let loaded = read_table(&answer.body, answer.etag).map_err(SwapError::Unknown)?;
                let is_there = |update: &TableUpdate| match update {
                    TableUpdate::AddSnapshot { snapshot } => {
                        loaded.metadata.snapshot_by_id(snapshot.snapshot_id()).is_some()
                    }
                    _ => true,
                };
                if !updates.iter().all(is_there) {
                    let message = "the catalog says that it committed, and shows the table without the commit";
                    return Err(SwapError::Unknown(Error::new(Kind::Unavailable, message)));
                }
                Ok(Committed::Done(Box::new(loaded)))
            }
            Verdict::Conflict => Ok(Committed::Stale),
            Verdict::NotDone => Err(SwapError::NotDone(self.refusal(&answer).context(format!("commit to `{name}`")))),
            Verdict::Unknown => {
                // Before the table is asked, or the commit repeated.
                tokio::time::sleep(answer.pause()).await;
                // Of which commit, says whoever gives it up.
                Err(SwapError::Unknown(self.refusal(&answer)))
            }
        }
    }

    /// Tries whether we may commit, by a commit that would change nothing and that asks for a table of another identity: who may is told of the
    /// conflict.
    pub async fn try_commit(&self, name: &TableName) -> Result<()> {
        let answer = self.change(self.paths.table(name), &vain_commit(name), Uuid::now_v7()).await;
        let answer = answer.map_err(|(SwapError::NotDone(error) | SwapError::Unknown(error))| error)?;
        match answer.status {
            // Some do not take a commit without changes, whoever asks.
            200..=299 | 400 | 409 | 422 => Ok(()),
            _ => Err(self.refusal(&answer).context(format!("commit to `{name}`"))),
        }
    }

    /// Tries whether we may look into the catalog; changes nothing.
    pub async fn try_access(&self) -> Result<()> {
        if !self.served.offers(LIST_NAMESPACES) {
            return Ok(());
        }
        let request = Request { method: Method::GET, url: self.paths.namespaces(), body: None, header: None };
        let answer = self.send(&request).await.map_err(Unanswered::error)?;
        if answer.is_success() { Ok(()) } else { Err(self.refusal(&answer)) }
    }

    async fn configuration(&self, url: &str, warehouse: &str) -> Result<Served> {
        let context = || format!("connect to the catalog at {}", shown(url));
        let no_catalog = |why: &str| {
            Error::new(Kind::Config, format!("there is no Iceberg REST catalog: {why}"))
                .hint("correct catalog.uri: it is the URL below which v1/config lies")
        };
        let request = Request { method: Method::GET, url: config_url(url, warehouse), body: None, header: None };
        let answer = self.send(&request).await.map_err(Unanswered::error).context_with(context)?;
        if let Some(ahead) = answer.date.as_deref().and_then(|date| clock_ahead(date, Utc::now())) {
            tracing::warn!(
                seconds = ahead.as_secs(),
                "this host's clock is ahead of the catalog's, which may refuse commits"
            );
        }
        if answer.is_success() {
            let served = Served::read(&answer.body);
            return served.ok_or_else(|| no_catalog("v1/config is no configuration")).context_with(context);
        }
        let error = match (kind(answer.status), answer.told.kind.is_empty()) {
            (Kind::Refused, true) => no_catalog(&format!("v1/config answers {}", answer.status)),
            (Kind::Refused, false) => Error::new(Kind::Config, answer.text(CATALOG)).hint(
                "let catalog.warehouse name what this catalog calls a warehouse (or a catalog), or correct catalog.uri",
            ),
            _ => self.refusal(&answer),
        };
        Err(error.context(context()))
    }

    /// Adds a table by a request of its namespace.
    async fn add(&self, name: &TableName, url: String, body: &Value) -> Result<bool, SwapError> {
        let answer = self.ask_for(name, url, body).await?;
        let refusal = || self.refusal(&answer).context(format!("add `{name}` to the catalog"));
        match verdict(answer.status, &answer.told.kind) {
            // Nothing that this request itself wrote can be missing.
            _ if answer.status == 404 => Err(SwapError::NotDone(refusal())),
            Verdict::Done => Ok(true),
            Verdict::Conflict => Ok(false),
            Verdict::NotDone => Err(SwapError::NotDone(refusal())),
            Verdict::Unknown => Err(SwapError::Unknown(refusal())),
        }
    }

    /// Asks for a table by a request of its namespace, which is made where it is missing.
    async fn ask_for(&self, name: &TableName, url: String, body: &Value) -> Result<Answer, SwapError> {
        let answer = self.change(url.clone(), body, Uuid::now_v7()).await?;
        if answer.status != 404 || !no_such_table(&answer.told.kind) {
            return Ok(answer);
        }
        self.create_namespace(&levels(&name.namespace)).await.map_err(SwapError::NotDone)?;
        self.change(url, body, Uuid::now_v7()).await
    }

    /// Creates a namespace, and those above it where the server does not take it without them.
    async fn create_namespace(&self, levels: &[&str]) -> Result<()> {
        let mut answer = self.add_namespace(levels).await?;
        if levels.len() > 1 && matches!(answer.status, 400 | 404) {
            for depth in 1..levels.len() {
                // Whether it is there or cannot be made, the last one tells.
                self.add_namespace(levels.get(..depth).unwrap_or_default()).await?;
            }
            answer = self.add_namespace(levels).await?;
        }
        match verdict(answer.status, &answer.told.kind) {
            Verdict::Done | Verdict::Conflict => Ok(()),
            Verdict::NotDone | Verdict::Unknown => Err(self.refusal(&answer).context("create the namespace")),
        }
    }

    async fn add_namespace(&self, levels: &[&str]) -> Result<Answer> {
        let answer = self.change(self.paths.namespaces(), &create_namespace(levels), Uuid::now_v7()).await;
        answer.map_err(|(SwapError::NotDone(error) | SwapError::Unknown(error))| error)
    }

    /// Refuses a server that does not have what we need.
    fn need(&self, endpoint: &str) -> Result<()> {
        if self.served.offers(endpoint) {
            return Ok(());
        }
        Err(Error::new(Kind::Config, format!("the catalog does not offer `{endpoint}`"))
            .hint("use a catalog that does, or let its administrator turn it on; reading alone is not enough"))
    }

    async fn change(&self, url: String, body: &Value, key: Uuid) -> Result<Answer, SwapError> {
        let header = self.served.is_idempotent().then(|| (IDEMPOTENCY_KEY, key.to_string()));
        let answer = self.send(&Request { method: Method::POST, url, body: Some(body), header }).await;
        answer.map_err(|unanswered| match unanswered {
            Unanswered::NotSent(error) => SwapError::NotDone(error),
            Unanswered::Lost(error) => SwapError::Unknown(error),
        })
    }

    /// Sends a request, once more with another token where the first one was refused.
    async fn send(&self, request: &Request<'_>) -> Result<Answer, Unanswered> {
        let not_sent = Unanswered::NotSent;
        let bytes = request.body.map(serde_json::to_vec).transpose();
        let bytes = bytes.or_error(Kind::Internal, "write a request for the catalog").map_err(not_sent)?;
        let bytes = bytes.map(bytes::Bytes::from);
        let mut renewed = false;
        loop {
            let bearer = self.session.bearer(&self.transport, &self.headers).await.map_err(not_sent)?;
            let headers = self.headers_of(request, bearer.as_deref()).map_err(not_sent)?;
            let build = || {
                let builder = self.transport.client().request(request.method.clone(), &request.url);
                let builder = builder.headers(headers.clone());
                match &bytes {
                    Some(bytes) => builder.header(CONTENT_TYPE, "application/json").body(bytes.clone()),
                    None => builder,
                }
            };
            let answer = self.transport.ask(build, bearer.as_deref(), request.body.is_some()).await?;
            let refused = bearer.filter(|_| matches!(answer.status, 401 | 419) && !renewed);
            match refused {
                Some(token) if self.session.forget(&token).await => renewed = true,
                _ => return Ok(answer),
            }
        }
    }

    fn headers_of(&self, request: &Request<'_>, bearer: Option<&str>) -> Result<HeaderMap> {
        let mut headers = self.headers.clone();
        if let Some(token) = bearer {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.or_error(Kind::Config, "the token holds what no header may hold")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Some((name, value)) = &request.header {
            headers.insert(name, HeaderValue::try_from(value).or_error(Kind::Internal, "write a header")?);
        }
        Ok(headers)
    }

    /// An answer that is no success, as an error.
    fn refusal(&self, answer: &Answer) -> Error {
        let error = Error::new(kind(answer.status), answer.text(CATALOG));
        match hint(answer.status, self.session.who()) {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

/// The headers of each request to the catalog, from its properties.
fn headers(properties: &HashMap<String, String>) -> Result<HeaderMap> {
    let (delegation, mechanisms) = ACCESS_DELEGATION;
    let mut headers = HeaderMap::from_iter([(delegation.clone(), HeaderValue::from_static(mechanisms))]);
    for (name, value) in served::headers(properties) {
        let context = || format!("the catalog header `{name}` cannot be sent");
        let name = HeaderName::try_from(name).or_error(Kind::Config, context())?;
        let mut value = HeaderValue::try_from(value).or_error(Kind::Config, context())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    if headers.get(&delegation).is_some_and(HeaderValue::is_empty) {
        headers.remove(&delegation);
    }
    Ok(headers)
}

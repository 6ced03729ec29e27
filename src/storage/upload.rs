//! A new object, sent while it is written: small ones by one request, others in parts, of which few are in memory.

use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;

use super::buckets::{Begun, Bucket, Buckets};
use crate::error::{Classify, Error, Kind, Result};
use crate::failpoint::{self, Failpoint};

/// Bytes of a part: all but the last have as many, which some stores want. S3 takes 5 MiB and more, and 10,000 parts of an object.
const PART: usize = 8 << 20;
/// Parts of one object that are under way.
const IN_FLIGHT: usize = 2;

/// The object while it is written; it is there, and whole, once [`Upload::finish`] returns. What is begun and not finished is given up by
/// [`super::Storage::delete`].
#[derive(Debug)]
pub struct Upload {
    buckets: Arc<Buckets>,
    bucket: Bucket,
    key: Key,
    location: String,
    begun: bool,
    /// Bytes of the whole object so far.
    length: u64,
    waiting: Vec<Bytes>,
    waiting_length: usize,
    number: usize,
    under_way: JoinSet<object_store::Result<(usize, PartId)>>,
    sent: Vec<(usize, PartId)>,
}

impl Upload {
    /// Nothing is sent yet.
    pub(super) fn new(buckets: Arc<Buckets>, location: &str) -> Result<Self> {
        failpoint::hit_disk(Failpoint::FileCreate).or_error(Kind::Unavailable, format!("create {location}"))?;
        let (bucket, key) = buckets.find(location)?;
        Ok(Self {
            buckets,
            bucket,
            key,
            location: location.to_owned(),
            begun: false,
            length: 0,
            waiting: Vec::new(),
            waiting_length: 0,
            number: 0,
            under_way: JoinSet::new(),
            sent: Vec::new(),
        })
    }

    /// Appends `bytes`, which stay in memory until [`Self::ready`] sends them.
    pub(super) fn write(&mut self, bytes: Bytes) -> Result<()> {
        failpoint::hit_disk(Failpoint::FileWrite).or_error(Kind::Unavailable, format!("write {}", self.location))?;
        self.length += bytes.len() as u64;
        self.waiting_length += bytes.len();
        self.waiting.push(bytes);
        Ok(())
    }

    /// Sends all whole parts, and waits until no more than [`IN_FLIGHT`] are under way.
    pub(super) async fn ready(&mut self) -> Result<()> {
        while self.waiting_length >= PART {
            let part = self.take(PART);
            self.send(part).await?;
        }
        Ok(())
    }

    /// Sends what is left; the object is there once this returns.
    pub(super) async fn finish(mut self) -> Result<()> {
        failpoint::hit_disk(Failpoint::FileSync).or_error(Kind::Unavailable, format!("finish {}", self.location))?;
        self.ready().await?;
        let rest = self.take(self.waiting_length);
        if !self.begun {
            let put = self.bucket.store.put(&self.key, rest).await;
            return put.map(|_| ()).map_err(|e| self.failed(e));
        }
        if rest.content_length() > 0 {
            self.send(rest).await?;
        }
        while self.next_landed().await? {}
        self.sent.sort_by_key(|(number, _)| *number);
        let parts = mem::take(&mut self.sent).into_iter().map(|(_, part)| part).collect();
        let id = self.id()?;
        match self.bucket.parts.complete_multipart(&self.key, &id, parts).await {
            Ok(_) => {}
            // The client asks again where no answer came; not every store remembers that it has done it then.
            Err(object_store::Error::NotFound { .. }) if self.is_there().await => {}
            Err(error) => return Err(self.failed(error)),
        }
        self.buckets.forget(&self.location);
        Ok(())
    }

    /// Whether the object is there as a whole. No other upload has its name.
    async fn is_there(&self) -> bool {
        self.buckets.head(&self.location).await.is_ok_and(|length| length == self.length)
    }

    /// The next `length` bytes of those that wait.
    fn take(&mut self, length: usize) -> PutPayload {
        let mut missing = length;
        let mut taken = Vec::new();
        let mut waiting = mem::take(&mut self.waiting).into_iter();
        while let Some(mut piece) = waiting.next() {
            if piece.len() <= missing {
                missing -= piece.len();
                taken.push(piece);
                continue;
            }
            if missing > 0 {
                taken.push(piece.split_to(missing));
                missing = 0;
            }
            self.waiting.push(piece);
            self.waiting.extend(waiting);
            break;
        }
        self.waiting_length -= length - missing;
        taken.into_iter().collect()
    }

    async fn send(&mut self, part: PutPayload) -> Result<()> {
        if !self.begun {
            let id = self.bucket.parts.create_multipart(&self.key).await.map_err(|e| self.failed(e))?;
            self.buckets.begun(&self.location, Begun { bucket: self.bucket.clone(), key: self.key.clone(), id });
            self.begun = true;
        }
        while self.under_way.len() >= IN_FLIGHT {
            self.next_landed().await?;
        }
        let (parts, key, id, number) = (self.bucket.parts.clone(), self.key.clone(), self.id()?, self.number);
        self.number += 1;
        self.under_way.spawn(async move { Ok((number, parts.put_part(&key, &id, number, part).await?)) });
        Ok(())
    }

    fn id(&self) -> Result<String> {
        let id = self.buckets.id_of(&self.location);
        id.ok_or_else(|| Error::new(Kind::Internal, format!("{} was given up while it was sent", self.location)))
    }

    /// Waits until one more part has landed; `false` where none is under way. Where one fails, the others are waited for: those that land after the
    /// upload was given up would stay.
    async fn next_landed(&mut self) -> Result<bool> {
        let Some(sent) = self.under_way.join_next().await else { return Ok(false) };
        match sent.or_error(Kind::Internal, "wait for a part of a file")? {
            Ok(sent) => self.sent.push(sent),
            Err(error) => {
                while self.under_way.join_next().await.is_some() {}
                return Err(self.failed(error));
            }
        }
        Ok(true)
    }

    fn failed(&self, error: object_store::Error) -> Error {
        self.bucket.access.failed("write", &self.location, error)
    }
}

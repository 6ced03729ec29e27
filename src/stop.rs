//! SIGTERM and SIGINT: a pass abandons what it reads and finishes what it commits.

use std::time::Duration;

use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Classify, Error, Kind, Result};

/// Exit codes of the two signals, as a shell reports them.
const TERMINATED: u8 = 143;
const INTERRUPTED: u8 = 130;

/// What a process that was asked to stop takes for the rest.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Says whether a signal has asked this process to stop.
#[derive(Debug, Clone)]
pub struct Stop {
    code: watch::Receiver<Option<u8>>,
}

impl Stop {
    /// Begins to listen.
    pub fn listen() -> Result<Self> {
        let terminate = signal(SignalKind::terminate()).or_error(Kind::Internal, "listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).or_error(Kind::Internal, "listen for SIGINT")?;
        let (sender, code) = watch::channel(None);
        tokio::spawn(wait(terminate, interrupt, sender));
        Ok(Self { code })
    }

    /// The exit code that a signal asks for, `None` while there was none.
    pub fn exit_code(&self) -> Option<u8> {
        *self.code.borrow()
    }

    /// Does what is left once all is done, until a signal comes; after one, for a moment only. Whether it came to its end.
    pub async fn finishes(&self, rest: impl Future<Output = ()>) -> bool {
        match self.exit_code() {
            Some(_) => tokio::time::timeout(LAST_WORD, rest).await.is_ok(),
            None => self.or(rest.map(Ok)).await.is_ok(),
        }
    }

    /// Runs `work` unless and until a signal comes; then drops it, which closes its connections and so cancels its queries.
    pub async fn or<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut code = self.code.clone();
        tokio::select! {
            biased;
            Ok(_) = code.wait_for(Option::is_some) => Err(Error::new(Kind::Stopped, "stopped by a signal")),
            result = work => result,
        }
    }
}

async fn wait(mut terminate: Signal, mut interrupt: Signal, sender: watch::Sender<Option<u8>>) {
    let code = tokio::select! {
        _ = terminate.recv() => TERMINATED,
        _ = interrupt.recv() => INTERRUPTED,
    };
    sender.send_replace(Some(code));
    // The sender lives on, so that a waiter never takes a closed channel for a signal.
    sender.closed().await;
}

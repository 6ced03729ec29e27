//! k2-offload: moves the rows of ClickHouse tables into Apache Iceberg tables, exactly once, one idempotent pass per call.
//!
//! Data flows one way: [`commands`] build clients and call [`pass`], which calls the steps in order and hands each the values that the one
//! before returned. Steps do not know each other: [`source`] never sees Iceberg, [`mod@write`] never the catalog, [`commit`] never
//! the source.
//!
//! | module | owns |
//! |---|---|
//! | [`cli`], [`config`], [`error`], [`telemetry`], [`report`], [`stop`] | the edges: what comes in, what goes out |
//! | [`pass`] | the order of the steps and the points where a pass can die |
//! | [`chunk`] | one chunk on its way: counted, streamed into files, checked |
//! | [`progress`] | what a pass has done so far, and its report |
//! | [`plan`], [`late`], [`reset`], [`histogram`], [`watermark`], [`cursor`], [`partition`], [`schema`] | values and decisions: pure, synchronous, property-tested |
//! | [`ttl`] | alarms about rows that the source drops before they leave |
//! | [`source`] | the only user of ClickHouse |
//! | [`mod@write`] | Parquet streams -> data files: bytes pass through, the footer gets field ids; the rows of a query are encoded anew, by partition |
//! | [`audit`] | what counts and rows of both sides say, hour by hour: pure |
//! | [`compare`] | rows of both sides, exactly and in bounded memory; [`rows`] and [`difference`] decide, purely |
//! | [`target`] | catalog and read side of the Iceberg table |
//! | [`commit`] | the only changer of a target: the exactly-once argument, and what a commit writes and lets go |
//! | [`guard`], [`storage`], [`state`] | locks, durable files here and in object stores, cache and what hosts tell each other |
//! | [`postgres`], [`tls`], [`http`] | connections to PostgreSQL, what connections trust, documents for other programs |
//! | [`metrics`], [`notify`] | what monitoring sees, and who is told, once a pass is over |
//! | `simulation` | in tests only: random schedules of two hosts, crashes, resets and strangers, which drive the decisions of all these |
//! | [`failpoint`] | where tests make a pass fail, die or wait; empty in release builds |
//!
//! The invariants, and the rules P1 to P27 that comments cite, are those of the project's design: the commit carries files and
//! watermark together; it compares the commit-id that it was planned on; unknown is not failed; the marker survives expiry; windows are half-open and bounded by
//! the source's clock; what does not fit is refused by name; memory is bounded; durable comes before visible.

pub mod audit;
pub mod chunk;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod commit;
pub mod compare;
pub mod config;
pub mod cursor;
pub mod difference;
pub mod error;
pub mod failpoint;
pub mod guard;
pub mod histogram;
pub mod http;
pub mod late;
pub mod metrics;
pub mod notify;
pub mod partition;
pub mod pass;
pub mod plan;
pub mod postgres;
pub mod progress;
pub mod report;
pub mod reset;
pub mod rows;
pub mod schema;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod state;
pub mod stop;
pub mod storage;
pub mod target;
pub mod telemetry;
pub mod tls;
pub mod ttl;
pub mod watermark;
pub mod write;

//! Settings that every query pins (protocol.md P3).
//!
//! A user profile can make a query answer less than it was asked, with HTTP 200. So each setting that changes results is set on every
//! query. One that the server does not know is left out; one that we may not change is fine where it already has our value
//! and otherwise refused by name, unless it only costs time.

use std::collections::BTreeMap;

use crate::config::Compression;
use crate::error::{Error, Kind, Result};

/// What a wrong value would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Importance {
    /// Lose, add or change rows, or make a file that readers misread.
    Result,
    /// Cost time or space.
    Cost,
}

const PINNED: &[(&str, &str, Importance)] = {
    use Importance::{Cost, Result};
    &[
        ("additional_result_filter", "", Result),
        ("additional_table_filters", "{}", Result),
        ("apply_deleted_mask", "1", Result),
        ("cancel_http_readonly_queries_on_client_close", "1", Cost),
        ("describe_compact_output", "0", Result),
        ("describe_include_subcolumns", "0", Result),
        ("describe_include_virtual_columns", "0", Result),
        ("distinct_overflow_mode", "throw", Result),
        ("empty_result_for_aggregation_by_empty_set", "0", Result),
        ("extremes", "0", Result),
        ("fallback_to_stale_replicas_for_distributed_queries", "0", Result),
        ("final", "0", Result),
        ("group_by_overflow_mode", "throw", Result),
        ("join_overflow_mode", "throw", Result),
        ("limit", "0", Result),
        ("offset", "0", Result),
        ("max_bytes_to_read", "0", Cost),
        ("max_result_bytes", "0", Cost),
        ("max_result_rows", "0", Cost),
        ("max_rows_to_read", "0", Cost),
        // All filters together behind the last row group, where those that are not asked for can be left out.
        ("output_format_parquet_bloom_filter_flush_threshold_bytes", "536870912", Cost),
        ("output_format_parquet_compliant_nested_types", "1", Result),
        ("output_format_parquet_date_as_uint16", "0", Result),
        ("output_format_parquet_datetime_as_uint32", "0", Result),
        ("output_format_parquet_enum_as_byte_array", "1", Result),
        ("output_format_parquet_fixed_string_as_fixed_byte_array", "1", Result),
        ("output_format_parquet_string_as_string", "1", Result),
        ("output_format_parquet_unsupported_types_as_binary", "0", Result),
        ("output_format_parquet_use_custom_encoder", "1", Result),
        ("output_format_parquet_version", "2.latest", Result),
        ("output_format_parquet_write_page_index", "1", Cost),
        ("partial_result_on_first_cancel", "0", Result),
        ("prefer_column_name_to_alias", "0", Result),
        ("prefer_localhost_replica", "1", Cost),
        ("print_pretty_type_names", "0", Cost),
        ("read_overflow_mode", "throw", Result),
        ("read_overflow_mode_leaf", "throw", Result),
        // Without it the server does not cancel a query whose client has gone.
        ("readonly", "2", Cost),
        ("result_overflow_mode", "throw", Result),
        ("set_overflow_mode", "throw", Result),
        ("skip_unavailable_shards", "0", Result),
        ("sort_overflow_mode", "throw", Result),
        ("timeout_overflow_mode", "throw", Result),
        ("timeout_overflow_mode_leaf", "throw", Result),
        ("transfer_overflow_mode", "throw", Result),
        ("use_query_cache", "0", Result),
    ]
};

/// A page is closed, where it is large enough, after as many rows.
const PAGE_ROWS: &str = "output_format_parquet_batch_size";

/// Rows of a row group that is only read here, and bytes where rows are wide.
const COMPARED_ROW_GROUP: [&str; 2] = ["16384", "8388608"];

/// Settings that depend on the table, and one per query.
const PER_QUERY: [&str; 8] = [
    PAGE_ROWS,
    ROW_GROUP_BYTES,
    "log_comment",
    "max_execution_time",
    "output_format_compression_level",
    "output_format_parquet_compression_method",
    ROW_GROUP_SIZE,
    BLOOM_FILTER,
];

const ROW_GROUP_SIZE: &str = "output_format_parquet_row_group_size";
const ROW_GROUP_BYTES: &str = "output_format_parquet_row_group_size_bytes";
const BLOOM_FILTER: &str = "output_format_parquet_write_bloom_filter";

/// Why a user may not set `name` in the configuration, if so.
pub fn reserved_setting(name: &str) -> Option<&'static str> {
    match name {
        ROW_GROUP_SIZE => return Some("is what `row_group_size` of [defaults] or of a table sets"),
        BLOOM_FILTER => return Some("is what `bloom_filter` of [defaults] or of a table sets"),
        // Of data files it is the user's.
        ROW_GROUP_BYTES => return None,
        _ => {}
    }
    let pinned = PINNED.iter().any(|(pinned, ..)| *pinned == name) || PER_QUERY.contains(&name);
    let own =
        ["query", "query_id", "database", "user", "password", "default_format", "role", "session_id"].contains(&name);
    (pinned || own || name.starts_with("param_"))
        .then_some("is set by k2-offload itself, because it decides what a query returns")
}

/// What a server says of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSetting {
    /// Value for our user.
    pub value: String,
    /// Whether our user may not change it.
    pub readonly: bool,
}

/// All names that [`pinned`] asks about.
pub fn names() -> impl Iterator<Item = &'static str> {
    PINNED.iter().map(|(name, ..)| *name).chain(PER_QUERY)
}

/// The settings to send with every query, given what the server says of them.
pub fn pinned(server: &BTreeMap<String, ServerSetting>) -> Result<BTreeMap<String, String>> {
    let mut send = BTreeMap::new();
    let mut refused = Vec::new();
    for &(name, wanted, importance) in PINNED {
        match server.get(name) {
            Some(setting) if !setting.readonly => {
                send.insert(name.to_owned(), wanted.to_owned());
            }
            Some(setting) if setting.value != wanted && importance == Importance::Result => {
                refused.push(format!("{name} = `{}` (needed: `{wanted}`)", setting.value));
            }
            _ => {}
        }
    }
    if refused.is_empty() {
        return Ok(send);
    }
    Err(Error::new(Kind::Config, format!("the server does not let this user change {}", refused.join(", "))).hint(
        "these settings could change what a query returns: give the user a profile with readonly = 0 or 2, or with these values",
    ))
}

/// The Parquet settings of a table. The codec must be ours, and Bloom filters must come where they are asked for; what else cannot be set only
/// costs space or time.
pub fn parquet(
    server: &BTreeMap<String, ServerSetting>,
    wanted: &Compression,
    row_group_size: u64,
    bloom_filter: bool,
) -> Result<BTreeMap<String, String>> {
    let mut send = compression(server, wanted)?;
    let may_set = |name| server.get(name).is_some_and(|setting| !setting.readonly);
    if may_set(ROW_GROUP_SIZE) {
        send.insert(ROW_GROUP_SIZE.to_owned(), row_group_size.to_string());
    }
    match server.get(BLOOM_FILTER) {
        Some(setting) if !setting.readonly => {
            send.insert(BLOOM_FILTER.to_owned(), u8::from(bloom_filter).to_string());
        }
        Some(setting) if bloom_filter && setting.value != "1" => {
            let message = format!("the server does not let this user change {BLOOM_FILTER} = `{}`", setting.value);
            return Err(Error::new(Kind::Config, message)
                .hint("give the user a profile with readonly = 0 or 2, or leave out `bloom_filter`"));
        }
        None if bloom_filter => {
            let message = format!("the server is too old for `bloom_filter`: it has no setting {BLOOM_FILTER}");
            return Err(Error::new(Kind::Config, message).hint("upgrade the server, or leave out `bloom_filter`"));
        }
        Some(_) | None => {}
    }
    Ok(send)
}

/// What suits an answer that is decoded here and encoded again: fast, and in pages that take little memory however wide its rows are.
pub fn spooled(server: &BTreeMap<String, ServerSetting>) -> BTreeMap<String, String> {
    let fast = Compression { codec: "lz4".to_owned(), level: None };
    let mut send = compression(server, &fast).unwrap_or_default();
    if server.get(PAGE_ROWS).is_some_and(|setting| !setting.readonly) {
        send.insert(PAGE_ROWS.to_owned(), "16".to_owned());
    }
    send
}

/// What suits an answer that is decoded here a row group at a time: of that memory holds all.
pub fn compared(server: &BTreeMap<String, ServerSetting>) -> BTreeMap<String, String> {
    let mut send = spooled(server);
    let [rows, bytes] = COMPARED_ROW_GROUP;
    for (name, value) in [(ROW_GROUP_SIZE, rows), (ROW_GROUP_BYTES, bytes), (BLOOM_FILTER, "0")] {
        if server.get(name).is_some_and(|setting| !setting.readonly) {
            send.insert(name.to_owned(), value.to_owned());
        }
    }
    send
}

fn compression(server: &BTreeMap<String, ServerSetting>, wanted: &Compression) -> Result<BTreeMap<String, String>> {
    let mut send = BTreeMap::new();
    let method = "output_format_parquet_compression_method";
    match server.get(method) {
        Some(setting) if !setting.readonly => {
            send.insert(method.to_owned(), wanted.codec.clone());
        }
        Some(setting) if setting.value != wanted.codec => {
            let message = format!("the server does not let this user change {method} = `{}`", setting.value);
            return Err(Error::new(Kind::Config, message).hint(format!(
                "give the user a profile with readonly = 0 or 2, or set compression = \"{}\"",
                setting.value
            )));
        }
        Some(_) => {}
        None => {
            return Err(Error::new(Kind::Config, format!("the server is too old: it has no setting {method}"))
                .hint("ClickHouse 24.3 or newer writes Parquet as Iceberg needs it"));
        }
    }
    let level = "output_format_compression_level";
    if let (Some(value), Some(false)) = (wanted.level, server.get(level).map(|s| s.readonly)) {
        send.insert(level.to_owned(), value.to_string());
    }
    Ok(send)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(overrides: &[(&str, &str, bool)]) -> BTreeMap<String, ServerSetting> {
        let mut all: BTreeMap<String, ServerSetting> = PINNED
            .iter()
            .map(|(name, value, _)| ((*name).to_owned(), ServerSetting { value: (*value).to_owned(), readonly: false }))
            .collect();
        for (name, value, readonly) in overrides {
            all.insert((*name).to_owned(), ServerSetting { value: (*value).to_owned(), readonly: *readonly });
        }
        all
    }

    #[test]
    fn unsafe_values_that_cannot_be_changed_are_refused_by_name() {
        let error = pinned(&server(&[("read_overflow_mode", "break", true), ("limit", "5", true)])).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(
            error.to_string().contains("limit = `5`") && error.to_string().contains("read_overflow_mode = `break`")
        );
    }

    #[test]
    fn values_that_are_ours_or_only_cost_time_are_left_alone() {
        let send =
            pinned(&server(&[("limit", "0", true), ("output_format_parquet_write_page_index", "0", true)])).unwrap();
        assert!(!send.contains_key("limit") && !send.contains_key("output_format_parquet_write_page_index"));
        assert_eq!(send.get("offset").map(String::as_str), Some("0"));
    }

    #[test]
    fn settings_that_the_server_does_not_know_are_left_out() {
        assert!(pinned(&BTreeMap::new()).unwrap().is_empty());
    }

    #[test]
    fn a_codec_that_cannot_be_had_is_refused() {
        let zstd = Compression { codec: "zstd".into(), level: Some(3) };
        let method = "output_format_parquet_compression_method";
        let level = "output_format_compression_level";
        let send = compression(&server(&[(method, "lz4", false), (level, "1", false)]), &zstd).unwrap();
        assert_eq!((send[method].as_str(), send[level].as_str()), ("zstd", "3"));
        assert!(compression(&server(&[(method, "zstd", true), (level, "1", true)]), &zstd).unwrap().is_empty());
        assert_eq!(compression(&server(&[(method, "lz4", true)]), &zstd).unwrap_err().kind(), Kind::Config);
        assert_eq!(compression(&BTreeMap::new(), &zstd).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn filters_that_are_asked_for_must_come() {
        let none = Compression { codec: "none".into(), level: None };
        let method = ("output_format_parquet_compression_method", "none", true);
        let of = |value, readonly, asked| {
            parquet(&server(&[method, (BLOOM_FILTER, value, readonly), (ROW_GROUP_SIZE, "5", false)]), &none, 7, asked)
        };
        assert_eq!(of("0", false, true).unwrap()[BLOOM_FILTER], "1");
        assert_eq!(
            (&*of("1", false, false).unwrap()[BLOOM_FILTER], &*of("1", true, true).unwrap()[ROW_GROUP_SIZE]),
            ("0", "7")
        );
        assert!(!of("1", true, false).unwrap().contains_key(BLOOM_FILTER));
        assert_eq!(of("0", true, true).unwrap_err().kind(), Kind::Config);
        assert_eq!(parquet(&server(&[method]), &none, 7, true).unwrap_err().kind(), Kind::Config);
        assert!(
            !parquet(&server(&[method, (ROW_GROUP_SIZE, "5", true)]), &none, 7, false)
                .unwrap()
                .contains_key(ROW_GROUP_SIZE)
        );
    }

    #[test]
    fn users_cannot_override_what_is_pinned() {
        assert!(reserved_setting("final").is_some() && reserved_setting("max_execution_time").is_some());
        assert!(reserved_setting(ROW_GROUP_SIZE).is_some_and(|reason| reason.contains("`row_group_size`")));
        assert!(reserved_setting("max_threads").is_none());
    }
}

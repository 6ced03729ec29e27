//! Source tables: K2's bronze trades, the same on every machine.

use std::sync::LazyLock;
use std::time::SystemTime;

use super::Case;

/// The ten columns of the bronze tables.
pub const BRONZE: &str = "exchange_timestamp DateTime64(3), sequence_number UInt64, symbol String, price Decimal(18,8), \
     quantity Decimal(18,8), quote_volume Decimal(18,8), event_time DateTime64(3), kafka_offset UInt64, kafka_partition UInt16, \
     ingestion_timestamp DateTime";

/// Count and a hash of the rows as a multiset, the same for source and target although their types differ.
pub const HASH_OF_BRONZE: &str = "SELECT count(), sum(cityHash64(toUnixTimestamp64Micro(toDateTime64(exchange_timestamp, 6, 'UTC')), \
     toString(sequence_number), symbol, toString(price), toString(quantity), toString(quote_volume), \
     toUnixTimestamp64Micro(toDateTime64(event_time, 6, 'UTC')), toString(kafka_offset), toString(kafka_partition), \
     toUnixTimestamp64Micro(toDateTime64(ingestion_timestamp, 6, 'UTC')))) FROM ";

/// Milliseconds between two bursts of trades: 2000 trades last 1000 seconds.
const STEP_MILLIS: u64 = 5_000;
const TRADES_PER_STEP: u64 = 10;

/// Seconds since 1970 to the hour in which the first test asked for it.
static HOUR: LazyLock<u64> =
    LazyLock::new(|| SystemTime::UNIX_EPOCH.elapsed().expect("the clock is set").as_secs() / 3600 * 3600);

/// The start of so many hours ago, in SQL; of the same hour for all tests of a file, although the next one may begin meanwhile.
pub fn hours_ago(hours: u32) -> String {
    format!("toDateTime({} - {hours} * 3600, 'UTC')", *HOUR)
}

impl Case {
    /// Creates a bronze table.
    pub fn bronze(&self, table: &str) {
        self.sql(&format!(
            "CREATE TABLE `{table}` ({BRONZE}) ENGINE = MergeTree ORDER BY (exchange_timestamp, sequence_number)"
        ));
    }

    /// Inserts `rows` trades from `start` on: in each step a burst of ten, four of them in one millisecond and two of these
    /// equal in every column, of three symbols.
    pub fn trades(&self, table: &str, start: &str, rows: u64) {
        let step = format!("intDiv(number, {TRADES_PER_STEP}) * {STEP_MILLIS}");
        self.trades_at(table, start, rows, &step);
    }

    /// Inserts `rows` trades spread evenly over `days` days.
    pub fn trades_over_days(&self, table: &str, start: &str, rows: u64, days: u64) {
        self.trades_at(table, start, rows, &format!("intDiv(number * {days} * 86400000, {rows})"));
    }

    /// Creates K2's silver table.
    pub fn silver(&self) {
        self.sql(
            "CREATE TABLE silver_trades (message_id UUID, trade_id String, exchange LowCardinality(String), symbol LowCardinality(String), \
             canonical_symbol LowCardinality(String), asset_class Enum8('equities' = 1, 'crypto' = 2, 'futures' = 3, 'options' = 4), \
             currency LowCardinality(String), price Decimal128(8), quantity Decimal128(8), quote_volume Decimal128(8), \
             side Enum8('BUY' = 1, 'SELL' = 2, 'SELL_SHORT' = 3, 'UNKNOWN' = 4), trade_conditions Array(String), \
             timestamp DateTime64(6, 'UTC'), ingestion_timestamp DateTime64(6, 'UTC'), processed_at DateTime64(6, 'UTC'), \
             source_sequence Nullable(UInt64), platform_sequence Nullable(UInt64), vendor_data Map(String, String), is_valid Bool, \
             validation_errors Array(String)) ENGINE = MergeTree PARTITION BY (exchange, asset_class, toYYYYMMDD(timestamp)) \
             ORDER BY (exchange, asset_class, canonical_symbol, timestamp)",
        );
    }

    /// Inserts `rows` trades of three exchanges, one a second from `start` on, each exchange with a symbol of its own.
    pub fn silver_trades(&self, start: &str, rows: u64) {
        self.sql(&format!(
            "INSERT INTO silver_trades SELECT reinterpretAsUUID(sipHash128(number)), toString(number), \
             ['binance', 'kraken', 'coinbase'][1 + number % 3] AS ex, upper(ex), ex, 'crypto', 'USD', number - 500, number / 7, number / 3, \
             if(number % 2, 'BUY', 'SELL'), if(number % 5 = 0, ['a', 'ü'], []), toDateTime64('{start}', 6, 'UTC') + number AS at, \
             at + 1, at + 2, if(number % 3 = 0, NULL, number), number, map('n', toString(number)), number % 9 != 0, [] FROM numbers({rows})"
        ));
    }

    fn trades_at(&self, table: &str, start: &str, rows: u64, millis: &str) {
        self.sql(&format!(
            "INSERT INTO `{table}` (exchange_timestamp, sequence_number, symbol, price, quantity, quote_volume, event_time, \
             kafka_offset, kafka_partition, ingestion_timestamp) SELECT ts, cityHash64(n) % 1000, ['BTC-USD', 'ETH-USD', 'SOL-USD'][n % 3 + 1], \
             CAST(cityHash64(n, 'price') % 100000000, 'Decimal(18, 8)') / 1000, \
             CAST(cityHash64(n, 'quantity') % 1000000, 'Decimal(18, 8)') / 10000, \
             -CAST(cityHash64(n, 'volume') % 1000000000, 'Decimal(18, 8)') / 7, \
             ts + toIntervalMillisecond(n % 50), n % 2, n % 16, toDateTime(ts, 'UTC') + 1 \
             FROM (SELECT number - if(number % 10 = 3, 1, 0) AS n, \
             toDateTime64('{start}', 3, 'UTC') + toIntervalMillisecond({millis} + if(number % 10 < 4, 0, number % 10)) AS ts \
             FROM numbers({rows}))"
        ));
    }
}

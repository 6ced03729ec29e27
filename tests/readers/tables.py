"""The three tables of the readers' matrix: what leaves for them, their configuration, and what readers are asked about them.

`bronze`, `silver` and `gold` are K2's, cut down where columns would only be more of the same. Each gets a column more on the third day.
"""

import datetime
import decimal
import json
import re


# --- values, the same whoever read them


def whole(value):
    return None if value is None else int(value)


def text(value):
    return None if value is None else str(value)


def identifier(value):
    """A UUID: readers do not agree how these are ordered."""
    return text(value)


def flag(value):
    return None if value is None else value in (True, 1, "true")


def exact(value):
    return None if value is None else f"{decimal.Decimal(str(value)).normalize():f}"


def moment(value):
    """Microseconds since 1970."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(re.sub(r" UTC$", "+00:00", value))
    value = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
    return (value - datetime.datetime.fromtimestamp(0, datetime.timezone.utc)) // datetime.timedelta(microseconds=1)


def texts(value):
    return None if value is None else [str(each) for each in value]


def pairs(value):
    return None if value is None else sorted([str(k), str(v)] for k, v in (value.items() if isinstance(value, dict) else value))


def fees(value):
    """A list of structs of a text and a decimal; JSON of one where ClickHouse would not let it be null."""
    value = json.loads(value, parse_float=decimal.Decimal) if isinstance(value, str) else value
    fields = lambda each: [each["kind"], each["amount"]] if isinstance(each, dict) else each
    return None if value is None else [[str(kind), exact(amount)] for kind, amount in map(fields, value)]


# --- tables


class Table:
    """A table as readers see it: its columns, the last of which came later, and what they are asked. Of `filters` each must spare a reader something;
    `searches` are for values that may be anywhere."""

    def __init__(self, columns, sums, nested, filters, searches):
        self.columns, self.sums, self.nested, self.filters, self.searches = columns, sums, nested, filters, searches

    def first_columns(self):
        """Those of the first schema."""
        return dict(list(self.columns.items())[:-1])

    def extremes(self):
        return [name for name, kind in self.first_columns().items() if kind in (moment, exact, whole, text)]


DECIMALS = ("price", "quantity", "quote_volume")
# Filters are lists of (column, operator, value, kind), all of which must hold.
DAY_3 = ("2024-03-01 00:00:00", "2024-03-02 00:00:00")
TABLES = {
    "bronze": Table(
        columns={
            "exchange_timestamp": moment, "sequence_number": whole, "symbol": text, "price": exact, "quantity": exact, "quote_volume": exact,
            "event_time": moment, "kafka_offset": whole, "kafka_partition": whole, "ingestion_timestamp": moment, "venue": text,
        },
        sums=DECIMALS,
        nested=[],
        filters={
            "a partition": [("exchange_timestamp", ">=", DAY_3[0], moment), ("exchange_timestamp", "<", DAY_3[1], moment)],
            "bounds": [("event_time", "<", "2024-02-28 23:00:00", moment), ("symbol", "=", "ETH-USD", text)],
        },
        searches={
            "a later column": [("venue", "=", "spot", text)],
            "nulls of a later column": [("venue", "IS NULL", None, text)],
            "a wider integer": [("kafka_partition", ">=", "15", whole)],
            "a wider decimal": [("quantity", "<", "10.50000000", exact)],
        },
    ),
    "silver": Table(
        columns={
            "message_id": identifier, "trade_id": text, "exchange": text, "symbol": text, "canonical_symbol": text, "asset_class": text, "currency": text,
            "price": exact, "quantity": exact, "quote_volume": exact, "side": text, "trade_conditions": texts, "timestamp": moment,
            "ingestion_timestamp": moment, "processed_at": moment, "source_sequence": whole, "platform_sequence": whole, "vendor_data": pairs,
            "is_valid": flag, "validation_errors": texts, "fees": fees,
        },
        sums=DECIMALS,
        nested=["length(trade_conditions)", "length(validation_errors)", "vendor_data[n]"],
        filters={
            "a partition": [("timestamp", ">=", DAY_3[0], moment), ("timestamp", "<", DAY_3[1], moment), ("exchange", "=", "kraken", text)],
            "bounds": [("price", "<", "-400.00000000", exact)],
        },
        searches={
            "a UUID": [("message_id", "=", "005c378f-5bc6-182f-f3f9-1f97adb4265c", identifier)],
            "nulls": [("source_sequence", "IS NULL", None, whole), ("side", "=", "SELL", text)],
            "a boolean": [("is_valid", "=", "false", flag), ("platform_sequence", "<", "300", whole)],
            "no nulls": [("source_sequence", "IS NOT NULL", None, whole), ("asset_class", "=", "crypto", text)],
            "a large decimal": [("quote_volume", ">", "1234567890123456789.50000000", exact)],
        },
    ),
    "gold": Table(
        columns={"exchange": text, "canonical_symbol": text, "window_start": moment, "high_price": exact, "low_price": exact, "volume": exact, "trade_count": whole, "open_time": moment},
        sums=("high_price", "low_price", "volume", "trade_count"),
        nested=[],
        filters={
            "a partition": [("window_start", ">=", DAY_3[0], moment), ("exchange", "=", "kraken", text)],
            "bounds": [("window_start", "<", "2024-02-28 12:00:00", moment)],
        },
        searches={"a later column": [("open_time", ">=", "2024-03-01 05:00:00", moment)], "nulls of a later column": [("open_time", "IS NULL", None, moment)]},
    ),
}


# --- the source


SOURCES = [
    """CREATE TABLE trades (exchange_timestamp DateTime64(3), sequence_number UInt64, symbol String, price Decimal(18, 8), quantity Decimal(18, 8),
       quote_volume Decimal(18, 8), event_time DateTime64(3), kafka_offset UInt64, kafka_partition UInt16, ingestion_timestamp DateTime)
       ENGINE = MergeTree ORDER BY (exchange_timestamp, sequence_number)""",
    """CREATE TABLE silver_trades (message_id UUID, trade_id String, exchange LowCardinality(String), symbol LowCardinality(String),
       canonical_symbol LowCardinality(String), asset_class Enum8('equities' = 1, 'crypto' = 2, 'futures' = 3, 'options' = 4),
       currency LowCardinality(String), price Decimal128(8), quantity Decimal128(8), quote_volume Decimal128(8),
       side Enum8('BUY' = 1, 'SELL' = 2, 'SELL_SHORT' = 3, 'UNKNOWN' = 4), trade_conditions Array(String), timestamp DateTime64(6, 'UTC'),
       ingestion_timestamp DateTime64(6, 'UTC'), processed_at DateTime64(6, 'UTC'), source_sequence Nullable(UInt64),
       platform_sequence Nullable(UInt64), vendor_data Map(String, String), is_valid Bool, validation_errors Array(String))
       ENGINE = MergeTree PARTITION BY (exchange, asset_class, toYYYYMMDD(timestamp)) ORDER BY (exchange, asset_class, canonical_symbol, timestamp)""",
]
# The columns that come later, in which rows that have left before are null; and wider types.
LATER = [
    "ALTER TABLE trades MODIFY COLUMN kafka_partition UInt32, MODIFY COLUMN quantity Decimal(30, 8)",
    "ALTER TABLE trades ADD COLUMN venue LowCardinality(String) DEFAULT 'spot'",
    "ALTER TABLE silver_trades ADD COLUMN fees Array(Tuple(kind String, amount Decimal(18, 8)))",
]
CANDLES = """SELECT exchange, canonical_symbol, toStartOfHour(timestamp, 'UTC') AS window_start, max(price) AS high_price, min(price) AS low_price,
 sum(quantity) AS volume, count() AS trade_count{more} FROM silver_trades WHERE {where} GROUP BY exchange, canonical_symbol, window_start"""
MORE = ", min(timestamp) AS open_time"


def trades(day):
    """A day of bronze trades: four share a millisecond, and two of these are equal in every column."""
    return f"""INSERT INTO trades (exchange_timestamp, sequence_number, symbol, price, quantity, quote_volume, event_time, kafka_offset, kafka_partition, ingestion_timestamp)
        SELECT ts, cityHash64(n) % 1000, ['BTC-USD', 'ETH-USD', 'SOL-USD'][n % 3 + 1], CAST(cityHash64(n, 'price') % 100000000, 'Decimal(18, 8)') / 1000,
               CAST(cityHash64(n, 'quantity') % 1000000, 'Decimal(18, 8)') / 10000, -CAST(cityHash64(n, 'volume') % 1000000000, 'Decimal(18, 8)') / 7,
               ts + toIntervalMillisecond(n % 50), n % 2, n % 16, toDateTime(ts, 'UTC') + 1
        FROM (SELECT number - if(number % 10 = 3, 1, 0) AS n, toDateTime64('{day} 10:00:00', 3, 'UTC')
              + toIntervalMillisecond(intDiv(number, 10) * 5000 + if(number % 10 < 4, 0, number % 10)) AS ts FROM numbers(300))"""


def silver_trades(day, number):
    """A day of trades of three exchanges, one every two minutes from 00:00 on."""
    return f"""INSERT INTO silver_trades (message_id, trade_id, exchange, symbol, canonical_symbol, asset_class, currency, price, quantity, quote_volume, side, trade_conditions,
               timestamp, ingestion_timestamp, processed_at, source_sequence, platform_sequence, vendor_data, is_valid, validation_errors)
        SELECT reinterpretAsUUID(sipHash128(n)), toString(n), ['binance', 'kraken', 'coinbase'][1 + n % 3] AS ex, upper(ex), ex, 'crypto', 'USD',
               toDecimal128(n, 8) - toDecimal128('500.00000001', 8), toDecimal128(n, 8) / 7, toDecimal128('12345678901234567890.12345678', 8) / (n + 1),
               if(n % 2, 'BUY', 'SELL'), if(n % 5 = 0, ['a', 'ü', ''], []), toDateTime64('{day} 00:00:00', 6, 'UTC') + number * 120 + toIntervalMicrosecond(n) AS at,
               at + 1, at + 2, if(n % 3 = 0, NULL, n), n, map('n', toString(n), 'p', 'ß'), n % 9 != 0, if(n % 9 = 0, ['odd lot'], [])
        FROM (SELECT number, number + {number} AS n FROM numbers(300))"""


def config(place, url, database, namespace, has_later):
    query = CANDLES.replace("{more}", MORE if has_later else "").replace("{where}", "timestamp >= {low} AND timestamp < {high}")
    return f"""
[clickhouse]
url = '{url}'
database = '{database}'

[catalog]
{place.config}

[defaults]
settle_delay = '0s'

[[table]]
source = 'trades'
target = '{namespace}.bronze'
cursor = 'exchange_timestamp'
layer = 'bronze'
partition_by = ['day(exchange_timestamp)']
sort_by = ['symbol', 'price desc']
bloom_filter = ['symbol']

[[table]]
source = 'silver_trades'
target = '{namespace}.silver'
cursor = 'timestamp'
layer = 'silver'
key = ['exchange', 'trade_id']
partition_by = ['day(timestamp)', 'exchange', 'asset_class']

[[table]]
name = 'candles'
query = \"\"\"{query}\"\"\"
target = '{namespace}.gold'
cursor = 'window_start'
layer = 'gold'
key = ['exchange', 'canonical_symbol', 'window_start']
window = '1h'
start_at = '2024-02-28T00:00:00Z'
partition_by = ['month(window_start)', 'exchange']
"""


def wanted(name, has_later, has_null_lists=True):
    """SELECT of all rows that a target must hold, for a reader that knows lists that are null, or for one that takes them for empty."""
    later = "toDateTime64('2024-03-01 00:00:00', 6, 'UTC')"
    if name == "bronze":
        return f"SELECT * REPLACE (if(exchange_timestamp < {later}, NULL, toString(venue)) AS venue) FROM trades" if has_later else "SELECT * FROM trades"
    if name == "silver":
        none = "null" if has_null_lists else "[]"
        return f"SELECT * REPLACE (if(timestamp < {later}, '{none}', toJSONString(fees)) AS fees) FROM silver_trades" if has_later else "SELECT * FROM silver_trades"
    candles = CANDLES.format(more=MORE if has_later else "", where="1")
    return f"SELECT * REPLACE (if(window_start < {later}, NULL, open_time) AS open_time) FROM ({candles})" if has_later else candles

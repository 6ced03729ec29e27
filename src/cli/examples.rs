//! The examples of `--help` and of the man pages, one text per command. A test runs each line through the parser.

/// Of the program itself.
pub const PROGRAM: &str = "\
Examples:
  k2-offload config check            # is everything there that a pass needs?
  k2-offload init-tables             # once, and after new tables are configured
  k2-offload -q run                  # for cron
  k2-offload status                  # is all well?
  k2-offload history --failed        # what happened?
  k2-offload audit --last 48h --checksum";

pub const INIT_TABLES: &str = "\
Examples:
  k2-offload init-tables --dry-run
  k2-offload init-tables --table cold.trades
  k2-offload init-tables --table cold.trades --register /warehouse/cold/trades --watermark 2026-11-20T10:00:00.001Z";

pub const RUN: &str = "\
Examples:
  k2-offload run
  k2-offload run --dry-run --table cold.trades
  k2-offload run --layer bronze --layer silver
  k2-offload run --until 2026-11-20T00:00:00Z
  k2-offload --format json -q run";

pub const WATERMARK: &str = "\
Examples:
  k2-offload watermark show --max-lag 30m
  k2-offload watermark reset --table cold.trades --to 2026-11-20 --dry-run";

pub const WATERMARK_SHOW: &str = "\
Examples:
  k2-offload watermark show
  k2-offload watermark show --table cold.trades --max-lag 30m";

pub const WATERMARK_RESET: &str = "\
Examples:
  k2-offload watermark reset --table cold.trades --to 2026-11-20T10:00:00Z --dry-run
  k2-offload watermark reset --table cold.trades --to 2026-11-20T10:00:00Z --yes
  k2-offload watermark reset --table cold.trades --to-earliest";

pub const AUDIT: &str = "\
Examples:
  k2-offload audit
  k2-offload audit --last 48h --checksum
  k2-offload audit --table cold.trades --since 2026-11-01 --until 2026-11-08
  k2-offload audit --checksum --repair
  k2-offload audit --orphans";

pub const STATUS: &str = "\
Examples:
  k2-offload status
  k2-offload status --table cold.trades --max-lag 2h
  k2-offload --format json status";

pub const HISTORY: &str = "\
Examples:
  k2-offload history --last 24h
  k2-offload history --failed --limit 5
  k2-offload history --table cold.trades --since 2026-11-20 --chunks";

pub const CONFIG: &str = "\
Examples:
  k2-offload config check";

pub const CONFIG_CHECK: &str = "\
Examples:
  k2-offload config check
  k2-offload -c /etc/k2-offload/offload.toml config check --offline
  k2-offload --format json config check";

pub const COMPLETIONS: &str = "\
Examples:
  k2-offload completions bash > /etc/bash_completion.d/k2-offload
  k2-offload completions zsh > /usr/local/share/zsh/site-functions/_k2-offload
  k2-offload completions fish > /etc/fish/completions/k2-offload.fish";

pub const MAN: &str = "\
Examples:
  k2-offload man --dir /usr/local/share/man/man1";

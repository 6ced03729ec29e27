//! Bloom filters: ClickHouse writes them for all columns or for none, behind the last row group; where some are asked for, the others are left out.
//!
//! Where each filter and each page index lies says the footer, in offsets. Row groups stay where they are; what lies behind them moves
//! together, and the footer is told. A filter before the end of the last row group (a server that flushed early) keeps its bytes, unnamed.

use std::ops::Range;

use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};

use crate::error::{Classify, Kind, Result};

/// What is left of a file behind its row groups.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Parts that nobody refers to any more, ascending and disjoint.
    gone: Vec<Range<u64>>,
}

impl Cut {
    /// Parts of the file up to `end` that stay, behind the first that goes; ascending.
    pub fn kept(&self, end: u64) -> Vec<Range<u64>> {
        let starts = self.gone.iter().map(|gone| gone.end);
        let ends = self.gone.iter().skip(1).map(|gone| gone.start).chain([end]);
        starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty()).collect()
    }

    /// Where the first part that goes begins, and what is kept is moved to.
    pub fn start(&self) -> Option<u64> {
        self.gone.first().map(|gone| gone.start)
    }

    /// Bytes that go.
    pub fn length(&self) -> u64 {
        self.gone.iter().map(|gone| gone.end - gone.start).sum()
    }

    /// Where what lay at `offset` will be.
    fn moved(&self, offset: i64) -> i64 {
        let gone = self.gone.iter().filter(|gone| i64::try_from(gone.end).is_ok_and(|end| end <= offset));
        let length: u64 = gone.map(|gone| gone.end - gone.start).sum();
        i64::try_from(length).map_or(offset, |length| offset - length)
    }
}

/// The row groups without the filters of other columns than `columns`, and what that leaves out of a file whose footer begins at `end`.
pub fn keep_only(
    columns: &[String],
    row_groups: &[RowGroupMetaData],
    end: u64,
) -> Result<(Vec<RowGroupMetaData>, Cut)> {
    // Where nobody asked for any, a server writes them only because it must, and what an object store has taken stays as it is.
    if columns.is_empty() {
        return Ok((row_groups.to_vec(), Cut::default()));
    }
    let chunks = || row_groups.iter().flat_map(RowGroupMetaData::columns);
    let data_end = chunks().filter_map(pages_end).max();
    let mut gone: Vec<Range<u64>> = chunks()
        .filter(|chunk| !is_wanted(columns, chunk))
        .filter_map(filter_range)
        .filter(|range| Some(range.start) >= data_end && range.end <= end)
        .collect();
    gone.sort_by_key(|range| range.start);
    let mut gone = merged(gone);
    // Servers do not write what overlaps; where one does, it stays.
    let needed: Vec<Range<u64>> = chunks().flat_map(|chunk| needed_ranges(columns, chunk)).collect();
    gone.retain(|gone| !needed.iter().any(|needed| needed.start < gone.end && gone.start < needed.end));
    let cut = Cut { gone };
    let groups = row_groups.iter().map(|group| {
        let chunks = group.columns().iter().map(|chunk| moved(chunk, is_wanted(columns, chunk), &cut));
        let group = group.clone().into_builder().set_column_metadata(chunks.collect::<Result<_>>()?).build();
        group.or_error(Kind::Internal, "rebuild a row group")
    });
    Ok((groups.collect::<Result<_>>()?, cut))
}

/// Where the pages of a column chunk end; nothing where the footer says what cannot be.
fn pages_end(chunk: &ColumnChunkMetaData) -> Option<u64> {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    u64::try_from(start.checked_add(chunk.compressed_size())?).ok()
}

/// What readers still look for behind the row groups.
fn needed_ranges(columns: &[String], chunk: &ColumnChunkMetaData) -> impl Iterator<Item = Range<u64>> {
    let filter = filter_range(chunk).filter(|_| is_wanted(columns, chunk));
    let column_index = range(chunk.column_index_offset(), chunk.column_index_length());
    filter.into_iter().chain(column_index).chain(range(chunk.offset_index_offset(), chunk.offset_index_length()))
}

/// Filters are asked for by top-level column.
fn is_wanted(columns: &[String], chunk: &ColumnChunkMetaData) -> bool {
    matches!(chunk.column_path().parts(), [name] if columns.contains(name))
}

fn filter_range(chunk: &ColumnChunkMetaData) -> Option<Range<u64>> {
    range(chunk.bloom_filter_offset(), chunk.bloom_filter_length())
}

fn range(offset: Option<i64>, length: Option<i32>) -> Option<Range<u64>> {
    let start = u64::try_from(offset?).ok()?;
    Some(start..start.checked_add(u64::try_from(length?).ok()?)?)
}

/// Ranges that touch become one; `ranges` ascend.
fn merged(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn moved(chunk: &ColumnChunkMetaData, keeps_filter: bool, cut: &Cut) -> Result<ColumnChunkMetaData> {
    let filter = chunk.bloom_filter_offset().filter(|_| keeps_filter);
    chunk
        .clone()
        .into_builder()
        .set_bloom_filter_offset(filter.map(|offset| cut.moved(offset)))
        .set_bloom_filter_length(filter.and(chunk.bloom_filter_length()))
        .set_column_index_offset(chunk.column_index_offset().map(|offset| cut.moved(offset)))
        .set_offset_index_offset(chunk.offset_index_offset().map(|offset| cut.moved(offset)))
        .build()
        .or_error(Kind::Internal, "rebuild a column chunk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_moves_together() {
        let cut = Cut { gone: merged(vec![10..20, 20..25, 40..50]) };
        assert_eq!((cut.start(), cut.length(), cut.kept(70)), (Some(10), 25, vec![25..40, 50..70]));
        assert_eq!([5, 10, 25, 39, 50, 69].map(|offset| cut.moved(offset)), [5, 10, 10, 24, 25, 44]);
        assert_eq!(Cut { gone: merged(vec![10..15, 15..20]) }.kept(20), []);
        assert_eq!((Cut::default().start(), Cut::default().kept(9)), (None, vec![]));
    }
}

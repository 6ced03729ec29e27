//! What others do to the table, at once: their changes come through the catalog too, and know nothing of our markers.

use super::schedule::Schedule;
use super::source::Row;
use crate::cursor::Tick;
use crate::target::ancestors;

impl Schedule {
    pub fn compact(&mut self) {
        let rows: Vec<Row> = self.world.table.current.contents.rows().copied().collect();
        if rows.is_empty() {
            return;
        }
        let file = self.world.table.rewrite(rows);
        self.world.table.replace(vec![file]);
        self.note(|_| "somebody compacts".into());
    }

    /// Somebody deletes the rows of some ticks.
    pub fn delete(&mut self) {
        let files = self.world.table.current.contents.files.clone();
        let ticks: Vec<Tick> = files.iter().flat_map(|file| &file.rows).map(|row| row.tick).collect();
        if ticks.is_empty() {
            return;
        }
        let first = ticks[usize::try_from(self.world.random.below(ticks.len() as u64)).unwrap()];
        let goes = |row: &Row| (first..first + 4).contains(&row.tick);
        let mut left = Vec::new();
        for file in &files {
            if !file.rows.iter().any(goes) {
                left.push(file.clone());
                continue;
            }
            for row in file.rows.iter().filter(|row| goes(row)) {
                *self.world.oracle.deleted.entry(row.identity()).or_default() += 1;
            }
            let rows: Vec<Row> = file.rows.iter().filter(|row| !goes(row)).copied().collect();
            if !rows.is_empty() {
                left.push(self.world.table.rewrite(rows));
            }
        }
        self.world.oracle.is_tampered = true;
        self.world.table.replace(left);
        self.undeleted = Some((self.world.table.current.contents.list, files));
        self.note(|_| format!("somebody deletes the rows from {first} on"));
    }

    /// They put them back, unless the table has changed.
    pub fn undelete(&mut self) {
        let Some((list, files)) = self.undeleted.take() else { return };
        if self.world.table.current.contents.list == list {
            self.world.table.replace(files);
            self.note(|_| "somebody puts the deleted rows back".into());
        }
    }

    /// Somebody expires all snapshots but the newest few.
    pub fn expire(&mut self) {
        let before = self.world.table.current.clone();
        let metadata = before.metadata();
        let kept = usize::try_from(1 + self.world.random.below(3)).unwrap();
        let kept: Vec<i64> =
            ancestors(metadata, metadata.current_snapshot_id()).take(kept).map(|s| s.snapshot_id()).collect();
        let ids = metadata.snapshots().map(|snapshot| snapshot.snapshot_id());
        let ids: Vec<i64> = ids.filter(|id| !kept.contains(id)).collect();
        if ids.is_empty() {
            return;
        }
        self.world.table.expire(&ids);
        self.world.oracle.expired(&before, &self.world.table.current);
        self.note(|_| format!("somebody expires {ids:?}"));
    }

    pub fn roll_back(&mut self) {
        let metadata = self.world.table.current.metadata();
        let history: Vec<i64> =
            ancestors(metadata, metadata.current_snapshot_id()).skip(1).take(4).map(|s| s.snapshot_id()).collect();
        if history.is_empty() {
            return;
        }
        let to = history[usize::try_from(self.world.random.below(history.len() as u64)).unwrap()];
        self.world.table.set_current(to);
        self.world.oracle.is_tampered = true;
        self.note(|_| format!("somebody rolls back to {to}"));
    }
}

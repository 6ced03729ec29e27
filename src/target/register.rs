//! Tables that the catalog does not know: which metadata file is theirs, and what it says beside what the catalog holds.
//!
//! Spark's Hadoop catalog has no catalog but the folder: TABLE/metadata/vN.metadata.json, of which version-hint.text names the newest, or one
//! before it (Iceberg, `HadoopTableOperations.refresh`: from the hint upwards as long as there is a next one). Other catalogs, ours among them,
//! name files NNNNN-UUID.metadata.json: the highest number is the newest, or the file of a commit that died before the catalog heard of it,
//! which is whole too.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use iceberg::spec::{FormatVersion, ManifestList, TableMetadata};
use serde::Deserialize;
use uuid::Uuid;

use super::{Target, classify, io_cause};
use crate::config::TableName;
use crate::error::{Context, Error, Kind, Result};
use crate::storage::{Storage, Stored, file_error, is_local, local_path, same_spelling};
use crate::watermark::KEY;

pub(super) const VERSION_HINT: &str = "version-hint.text";
const SUFFIXES: [&str; 3] = [".gz.metadata.json", ".metadata.json.gz", ".metadata.json"];

/// What is to be done with a table that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The catalog holds it, as it was given or further on.
    Known,
    /// The catalog holds an earlier version, on which nobody built but its old catalog.
    Newer,
}

/// The version in the name of a metadata file: `v3.metadata.json` of Hadoop catalogs, `00003-UUID.metadata.json` of others.
pub fn version_of(file_name: &str) -> Option<i32> {
    let stem = SUFFIXES.iter().find_map(|suffix| file_name.strip_suffix(suffix))?;
    let number = stem.strip_prefix('v').or_else(|| stem.split_once('-').map(|(number, _)| number))?;
    number.parse().ok().filter(|version| *version >= 0)
}

/// The metadata file that was given, by path or URI: itself, or the newest of a table's folder. Refuses one after which there is a newer;
/// what is not there is a wrong argument ([`Kind::Config`]).
pub async fn locate(storage: &Storage, given: &str) -> Result<String> {
    let location = absolute(given)?;
    let wrong = |what: &str| Error::new(Kind::Config, format!("--register {location}: {what}"));
    if is_folder(&location)? {
        let folder = format!("{location}/metadata");
        if let Some((_, file)) = newest(storage, &folder).await? {
            return Ok(file);
        }
        let files = newest_of_others(storage, &folder, None).await?;
        let mut committed = Vec::new();
        for (version, file) in &files {
            if was_committed(storage, *version, file).await? {
                committed.push(file);
            }
        }
        return match files.as_slice() {
            [(_, file)] => Ok(file.clone()),
            _ if let [file] = committed.as_slice() => Ok((*file).clone()),
            [] => Err(wrong("no table lies here").hint("name a table's folder, or its newest metadata file")),
            [.., (_, file)] => Err(Error::refused(format!("{file} is not the only file of its version")).hint(
                "all but one are of commits that died, or lost against another: name the file that is written last",
            )),
        };
    }
    if !storage.exists(&location).await? {
        return Err(wrong("there is no such file").hint("name the table's newest metadata file, or its folder"));
    }
    let (folder, name) = parts(&location);
    let version = version_of(name);
    let newest = newest(storage, folder).await?;
    match newest.filter(|(newest, _)| version.is_none_or(|version| version < *newest)) {
        Some((_, newest)) => Err(Error::refused(format!("{location} is not the newest version of its table"))
            .hint(format!("rows of the newer version would be lost to readers: give {newest}"))),
        None => Ok(location),
    }
}

/// Refuses a file beside which another file of this table has a higher version: rows of that would be lost to readers.
pub async fn check_newest(storage: &Storage, file: &str, table: Uuid) -> Result<()> {
    let (folder, name) = parts(file);
    let Some(version) = version_of(name) else { return Ok(()) };
    let newest = newest_of_others(storage, folder, Some(table)).await?.pop();
    match newest.filter(|(newest, _)| version < *newest) {
        Some((_, newest)) => Err(Error::refused(format!("{file} is not the newest version of its table"))
            .hint(format!("rows of the newer version would be lost to readers: give {newest}"))),
        None => Ok(()),
    }
}

/// Refuses to make a table where one lies that was committed to: its catalog may be gone, or not be mounted.
pub async fn check_vacant(storage: &Storage, location: &str, name: &TableName) -> Result<()> {
    let folder = absolute(location)?;
    let is_table = holds_table(storage, &format!("{folder}/metadata")).await;
    if !is_table.context_with(|| format!("look for a table where `{name}` would lie"))? {
        return Ok(());
    }
    Err(Error::refused(format!("a table lies at {folder}, which the catalog does not know")).hint(format!(
        "if the catalog is not mounted, or must be restored, do that; else `k2-offload init-tables --table {name} --register {folder}` takes the table over, \
         and a new one needs the folder moved away"
    )))
}

/// Whether a metadata folder is of a table that was committed to.
async fn holds_table(storage: &Storage, folder: &str) -> Result<bool> {
    let found = match newest(storage, folder).await? {
        Some(found) => Some(found),
        None => newest_of_others(storage, folder, None).await?.pop(),
    };
    match found {
        None => Ok(false),
        Some((version, file)) => was_committed(storage, version, &file).await,
    }
}

/// The files of the highest version NNNNN-UUID.metadata.json in a metadata folder: of one table, or of each that lies there, because one may have
/// been dropped and made anew. The last written one is last.
async fn newest_of_others(storage: &Storage, folder: &str, table: Option<Uuid>) -> Result<Vec<(i32, String)>> {
    let mut newest: BTreeMap<Option<Uuid>, Vec<(i32, SystemTime, String)>> = BTreeMap::new();
    for file in entries(storage, folder).await? {
        let (_, name) = parts(&file.location);
        let Some(version) = version_of(name).filter(|_| !name.starts_with('v')) else { continue };
        // A file that a crash left empty or half written is no version.
        let table_uuid = head_of(storage, &file.location).await?.map(|head| head.table_uuid);
        if table_uuid.is_none() && !name.contains(".gz") {
            continue;
        }
        let files = newest.entry(table_uuid).or_default();
        match files.first().map_or(Ordering::Greater, |(highest, ..)| version.cmp(highest)) {
            Ordering::Greater => *files = vec![(version, file.modified, file.location)],
            Ordering::Equal => files.push((version, file.modified, file.location)),
            Ordering::Less => {}
        }
    }
    let of_table = |of: &Option<Uuid>| table.is_none() || of.is_none() || *of == table;
    let mut files: Vec<_> = newest.into_iter().filter(|(of, _)| of_table(of)).flat_map(|(_, files)| files).collect();
    files.sort_by(|(a, at, _), (b, bt, _)| (a, at).cmp(&(b, bt)));
    Ok(files.into_iter().map(|(version, _, file)| (version, file)).collect())
}

/// Whether a metadata file is of a table; version 0 without a snapshot is what an init-tables leaves that died, or that a REST catalog refused.
async fn was_committed(storage: &Storage, version: i32, file: &str) -> Result<bool> {
    Ok(version > 0 || head_of(storage, file).await?.is_none_or(|head| head.has_snapshot()))
}

/// What tells which table a metadata file is of.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "table-uuid")]
    table_uuid: Uuid,
    #[serde(rename = "current-snapshot-id")]
    snapshot: Option<i64>,
}

impl Head {
    /// Java writes -1 for none.
    fn has_snapshot(&self) -> bool {
        self.snapshot.is_some_and(|snapshot| snapshot >= 0)
    }
}

/// `None` of a file that is no JSON of a table: damaged, or compressed.
async fn head_of(storage: &Storage, file: &str) -> Result<Option<Head>> {
    let bytes = storage.read_if_exists(file).await?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// The files of a folder; none where there is no folder.
async fn entries(storage: &Storage, folder: &str) -> Result<Vec<Stored>> {
    if is_local(folder) && !local_path(folder)?.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = storage.list(folder).await?;
    files.retain(|file| parts(&file.location).0 == folder);
    Ok(files)
}

/// Folder and name of a file.
pub(super) fn parts(location: &str) -> (&str, &str) {
    location.rsplit_once('/').unwrap_or(("", location))
}

/// An object store has no folders: there, only names of metadata files are files.
fn is_folder(location: &str) -> Result<bool> {
    match is_local(location) {
        true => Ok(local_path(location)?.is_dir()),
        false => Ok(version_of(parts(location).1).is_none()),
    }
}

/// A path of this host without `.` and `..`, or the URI of an object.
fn absolute(given: &str) -> Result<String> {
    if given.contains("://") && !is_local(given) {
        return Ok(given.trim_end_matches('/').to_owned());
    }
    let path = match given.starts_with("file:") {
        true => local_path(given)?,
        false => std::path::absolute(given).map_err(|e| file_error("find", Path::new(given), e))?,
    };
    // Components drop a slash at the end.
    Ok(path.components().collect::<PathBuf>().to_string_lossy().into_owned())
}

/// The newest version in a metadata folder of a Hadoop catalog, and its file; `None` where there is none.
async fn newest(storage: &Storage, folder: &str) -> Result<Option<(i32, String)>> {
    let versions: BTreeMap<i32, String> = entries(storage, folder)
        .await?
        .into_iter()
        .filter(|file| parts(&file.location).1.starts_with('v'))
        .filter_map(|file| Some((version_of(parts(&file.location).1)?, file.location)))
        .collect();
    // A hint that does not parse is looked past, as Iceberg does.
    let hint_file = format!("{folder}/{VERSION_HINT}");
    let hint = storage.read_if_exists(&hint_file).await?;
    let hint = hint.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse::<i32>().ok());
    let Some(mut version) = hint.or(versions.keys().next_back().copied()) else { return Ok(None) };
    while versions.keys().any(|other| Some(*other) == version.checked_add(1)) {
        version += 1;
    }
    match versions.get(&version) {
        Some(file) => Ok(Some((version, file.clone()))),
        None => {
            let message = format!("{hint_file} names version {version}, which is not there");
            Err(Error::new(Kind::Config, message)
                .hint("restore the metadata file, or correct the hint to the newest version that is there"))
        }
    }
}

impl Target {
    /// Reads a table by its metadata file, and refuses what cannot be taken over: another format, and a table that lies elsewhere than it says.
    pub async fn read_unregistered(storage: &Storage, file: &str) -> Result<Self> {
        let read = TableMetadata::read_from(storage.file_io(), file).await;
        let metadata = read.map_err(|error| match io_cause(&error) {
            Some(_) => classify(error, "read the table's metadata".to_owned()),
            None => Error::from_cause(Kind::Config, error)
                .context(format!("{file} is no Iceberg metadata that this version reads"))
                .hint("name the table's newest metadata file, or its folder"),
        })?;
        if metadata.format_version() == FormatVersion::V1 {
            return Err(Error::refused("the table has Iceberg format v1, this version writes v2").hint(
                "upgrade it (Spark: ALTER TABLE .. SET TBLPROPERTIES ('format-version' = '2')), then register the new version",
            ));
        }
        let (place, name) = (check_place(&metadata, file)?, parts(file).1);
        let place = if is_local(&place) { format!("file://{place}") } else { place };
        let target = Self {
            metadata_location: format!("{place}/metadata/{name}"),
            metadata,
            version: None,
            credentials_end: None,
        };
        target.check_format()?;
        Ok(target)
    }

    /// Every file of the current snapshot must be there: what is missing now would be found out by readers.
    pub async fn check_files(&self, storage: &Storage) -> Result<()> {
        let file_io = storage.file_io();
        let Some(snapshot) = self.metadata.current_snapshot() else { return Ok(()) };
        let failed = |e| classify(e, "read the table's manifests".to_owned());
        let exists = async |location: &str| -> Result<()> {
            if storage.exists(location).await? {
                return Ok(());
            }
            Err(Error::refused(format!("{location} is missing, which the table's current snapshot needs"))
                .hint("restore the file, or mount the folder at the place that the table names"))
        };
        exists(snapshot.manifest_list()).await?;
        let bytes = file_io.new_input(snapshot.manifest_list()).map_err(failed)?.read().await.map_err(failed)?;
        let list = ManifestList::parse_with_version(&bytes, self.metadata.format_version()).map_err(failed)?;
        for manifest in list.consume_entries() {
            exists(&manifest.manifest_path).await?;
            let manifest = manifest.load_manifest(file_io).await.map_err(failed)?;
            for entry in manifest.entries().iter().filter(|entry| entry.is_alive()) {
                exists(entry.file_path()).await?;
            }
        }
        Ok(())
    }

    /// Whether commits of ours have gone on from what was given, which need not be there any more: tables let old metadata go.
    pub fn goes_on_from(&self, given: &str) -> bool {
        let folder = same_spelling(self.metadata.location());
        let lies_in = |path: &String| {
            same_spelling(path).strip_prefix(&folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.metadata.properties().contains_key(KEY) && absolute(given).is_ok_and(|path| lies_in(&path))
    }

    /// How a table that was given stands to the one of that name in the catalog; refuses another one, and one that went on without it.
    pub fn relation_to(&self, registered: &Self) -> Result<Relation> {
        let (theirs, ours) = (&self.metadata, &registered.metadata);
        let location = same_spelling(ours.location());
        if theirs.uuid() != ours.uuid() || same_spelling(theirs.location()) != location {
            return Err(Error::refused(format!("the catalog holds another table of this name, at {location}"))
                .hint("choose another target in the configuration, or drop that table first"));
        }
        let given = same_spelling(&self.metadata_location);
        let held = same_spelling(&registered.metadata_location);
        let logs = |table: &TableMetadata, location: &str| {
            table.metadata_log().iter().any(|entry| same_spelling(&entry.metadata_file) == location)
        };
        if given == held || logs(ours, &given) {
            return Ok(Relation::Known);
        }
        if logs(theirs, &held) {
            return Ok(Relation::Newer);
        }
        // The log is cut after some time: then the snapshot tells, or that it is older than all that are kept.
        let is_known = theirs.current_snapshot().is_none_or(|snapshot| {
            ours.snapshot_by_id(snapshot.snapshot_id()).is_some()
                || ours.snapshots().all(|kept| kept.timestamp_ms() > snapshot.timestamp_ms())
        });
        if is_known {
            return Ok(Relation::Known);
        }
        Err(Error::refused("the table that was given has a snapshot that is not in the catalog's, which went on from an earlier one").hint(
            "somebody wrote through the old catalog after the cut-over: no reader of the catalog sees those rows; offload them again, \
             or copy them over, and stop that writer",
        ))
    }
}

/// The table's folder as its metadata names it, to which commits go: it must be the one that the metadata file lies in.
fn check_place(metadata: &TableMetadata, file: &str) -> Result<String> {
    let location = metadata.location().trim_end_matches('/');
    let says = if is_local(location) { same_spelling(location) } else { location.to_owned() };
    let lies = parts(file).0.strip_suffix("/metadata");
    let real = |location: &str| Path::new(location).canonicalize().ok();
    let is_there = |lies: &str| {
        same_spelling(lies) == same_spelling(&says)
            || (is_local(lies) && real(lies).is_some_and(|lies| Some(lies) == real(&says)))
    };
    if lies.is_some_and(is_there) {
        return Ok(says);
    }
    let message = format!("the metadata says that the table lies at {says}, but it is {file}");
    Err(Error::refused(message).hint(
        "a table that was copied or moved still names its old files: register it where it was made, or mount it there again",
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use futures::FutureExt;

    use super::*;
    use crate::config::Config;

    fn storage() -> Storage {
        let text = "[[table]]\nsource = 't'\ntarget = 'c.t'\ncursor = 'ts'\n";
        Storage::of(&Config::parse(text, Path::new("/"), |_| None).unwrap())
    }

    /// Local files are never waited for.
    fn locate(given: &str) -> Result<String> {
        super::locate(&storage(), given).now_or_never().unwrap()
    }

    fn check_newest(file: &Path, table: Uuid) -> Result<()> {
        super::check_newest(&storage(), file.to_str().unwrap(), table).now_or_never().unwrap()
    }

    fn check_vacant(location: &str, name: &TableName) -> Result<()> {
        super::check_vacant(&storage(), location, name).now_or_never().unwrap()
    }

    #[test]
    fn metadata_files_say_their_version() {
        for (name, version) in [
            ("v3.metadata.json", Some(3)),
            ("v12.gz.metadata.json", Some(12)),
            ("v12.metadata.json.gz", Some(12)),
            ("00007-2cd22b57-5127-4198-92ba-e4e67c79821b.metadata.json", Some(7)),
            ("v-1.metadata.json", None),
            ("v99999999999.metadata.json", None),
            ("version-hint.text", None),
            ("metadata.json", None),
        ] {
            assert_eq!(version_of(name), version, "{name}");
        }
    }

    /// Metadata of a table, as far as it is looked at here.
    fn of(table: u128) -> String {
        format!("{{\"table-uuid\": \"{}\"}}", Uuid::from_u128(table))
    }

    fn table(files: &[&str], hint: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("metadata")).unwrap();
        for file in files {
            fs::write(folder.path().join("metadata").join(file), of(1)).unwrap();
        }
        if let Some(hint) = hint {
            fs::write(folder.path().join("metadata").join(VERSION_HINT), hint).unwrap();
        }
        folder
    }

    #[test]
    fn the_newest_version_is_found_as_spark_finds_it() {
        let files = [
            "v1.metadata.json",
            "v2.metadata.json",
            "v3.gz.metadata.json",
            "v5.metadata.json",
            "00009-x.metadata.json",
        ];
        for (hint, newest) in [
            (Some("3"), Some("v3.gz")),
            (Some("1\n"), Some("v3.gz")),
            (None, Some("v5")),
            (Some("x"), Some("v5")),
            (Some("7"), None),
        ] {
            let table = table(&files, hint);
            let found = locate(table.path().to_str().unwrap()).ok();
            let found = found.map(|file| parts(&file).1.replace(".metadata.json", ""));
            assert_eq!(found.as_deref(), newest, "{hint:?}");
        }
    }

    #[test]
    fn of_tables_of_other_catalogs_the_highest_number_is_the_newest() {
        let folder = table(&["00002-a.metadata.json", "00010-b.metadata.json", "00009-c.metadata.json"], None);
        let file = |name: &str| folder.path().join("metadata").join(name);
        assert_eq!(Path::new(&locate(folder.path().to_str().unwrap()).unwrap()), file("00010-b.metadata.json"));
        let check = |name: &str| check_newest(&file(name), Uuid::from_u128(1));
        check("00010-b.metadata.json").unwrap();
        let old = check("00009-c.metadata.json").unwrap_err();
        assert!(old.kind() == Kind::Refused && old.hint_text().contains("00010-b"), "{old}");
        for torn in ["00011-e.metadata.json", "00012-f.metadata.json"] {
            fs::write(file(torn), if torn.contains("11") { "" } else { "{\"table-uu" }).unwrap();
        }
        check("00010-b.metadata.json").unwrap();
        fs::write(file("00010-d.metadata.json"), of(1)).unwrap();
        assert_eq!(locate(folder.path().to_str().unwrap()).unwrap_err().kind(), Kind::Refused);
        check("00010-b.metadata.json").unwrap();
        // One that was dropped, and made anew in its place.
        for (name, table) in [("00002-a", 2), ("00009-c", 1), ("00010-b", 2), ("00010-d", 2)] {
            fs::write(file(&format!("{name}.metadata.json")), of(table)).unwrap();
        }
        check("00009-c.metadata.json").unwrap();
        assert_eq!(locate(folder.path().to_str().unwrap()).unwrap_err().kind(), Kind::Refused);
    }

    #[test]
    fn a_table_is_not_made_over_another() {
        let vacant = |files: &[&str]| {
            let name = TableName { namespace: "cold".into(), name: "t".into() };
            let folder = table(files, None);
            check_vacant(&format!("file://{}", folder.path().display()), &name).is_ok()
        };
        assert!(
            vacant(&[]) && vacant(&["00000-died.metadata.json"]),
            "what an init-tables that died leaves is no table"
        );
        assert!(!vacant(&["00001-a.metadata.json"]) && !vacant(&["v1.metadata.json"]));
        let made_with_rows = table(&["00000-a.metadata.json"], None);
        let rows = of(1).replace('}', ", \"current-snapshot-id\": 7}");
        fs::write(made_with_rows.path().join("metadata/00000-a.metadata.json"), rows).unwrap();
        let name = TableName { namespace: "cold".into(), name: "t".into() };
        check_vacant(&format!("file://{}", made_with_rows.path().display()), &name).unwrap_err();
        check_vacant("file:///nowhere/at/all", &TableName { namespace: "c".into(), name: "t".into() }).unwrap();
    }

    #[test]
    fn an_old_version_is_refused_and_the_newest_taken() {
        let folder = table(&["v1.metadata.json", "v2.metadata.json"], Some("1"));
        let path = |name: &str| folder.path().join("metadata").join(name).to_str().unwrap().to_owned();
        assert_eq!(locate(&path("v1.metadata.json")).unwrap_err().kind(), Kind::Refused);
        for given in [
            path("v2.metadata.json"),
            format!("file:{}", path("v2.metadata.json")),
            format!("file://{}", path("v2.metadata.json")),
        ] {
            assert_eq!(locate(&given).unwrap(), path("v2.metadata.json"), "{given}");
        }
        assert_eq!(locate(&path("v3.metadata.json")).unwrap_err().kind(), Kind::Config);
        assert_eq!(locate("/").unwrap_err().kind(), Kind::Config);
        assert_eq!(locate(folder.path().join("metadata").to_str().unwrap()).unwrap_err().kind(), Kind::Config);
    }
}

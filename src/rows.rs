//! Rows as numbers: what a row holds as one hash of 128 bits, so that rows of both sides can be compared in bounded memory. Pure.
//!
//! Equal rows have equal images, whichever file they stand in: values are taken as bits (NaN and -0.0 too), null is no value, and an empty
//! list, map or text is. Two rows that differ have equal images once in 2^128 cases, and each [`Imager`] hashes in another way.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};
use twox_hash::XxHash3_128;

use crate::error::{Error, Kind, Result};

/// A hash, as bytes: those of many values in a row are hashed again.
pub type Image = [u8; 16];

/// Stands for null. No value is known to have it.
const NULL: Image = *b"k2-offload: null";

/// Makes images.
#[derive(Debug, Clone, Copy)]
pub struct Imager {
    seed: u64,
}

impl Imager {
    /// Images of different seeds say nothing of each other.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The images of rows with these columns, in this order.
    pub fn rows(&self, columns: &[ArrayRef], rows: usize) -> Result<Vec<Image>> {
        let columns = columns.iter().map(|column| self.values(column)).collect::<Result<Vec<_>>>()?;
        Ok(self.side_by_side(&columns, rows))
    }

    fn hash(&self, bytes: &[u8]) -> Image {
        XxHash3_128::oneshot_with_seed(self.seed, bytes).to_le_bytes()
    }

    /// One hash over those of several columns, row by row.
    fn side_by_side(&self, columns: &[Vec<Image>], rows: usize) -> Vec<Image> {
        let mut row = Vec::with_capacity(columns.len());
        let images = (0..rows).map(|number| {
            row.clear();
            row.extend(columns.iter().filter_map(|column| column.get(number)));
            self.hash(row.as_flattened())
        });
        images.collect()
    }

    /// The images of the values of one column.
    fn values(&self, array: &dyn Array) -> Result<Vec<Image>> {
        Ok(match array.data_type() {
            DataType::Boolean => {
                let values = array.as_boolean();
                self.each(array, |row| self.hash(&[u8::from(values.value(row))]))
            }
            DataType::Int32 => self.fixed::<Int32Type, 4>(array, i32::to_le_bytes),
            DataType::Int64 => self.fixed::<Int64Type, 8>(array, i64::to_le_bytes),
            DataType::Float32 => self.fixed::<Float32Type, 4>(array, f32::to_le_bytes),
            DataType::Float64 => self.fixed::<Float64Type, 8>(array, f64::to_le_bytes),
            DataType::Decimal128(..) => self.fixed::<Decimal128Type, 16>(array, i128::to_le_bytes),
            DataType::Date32 => self.fixed::<Date32Type, 4>(array, i32::to_le_bytes),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                self.fixed::<TimestampMicrosecondType, 8>(array, i64::to_le_bytes)
            }
            DataType::Utf8 => {
                let values = array.as_string::<i32>();
                self.each(array, |row| self.hash(values.value(row).as_bytes()))
            }
            DataType::LargeUtf8 => {
                let values = array.as_string::<i64>();
                self.each(array, |row| self.hash(values.value(row).as_bytes()))
            }
            DataType::Binary => {
                let values = array.as_binary::<i32>();
                self.each(array, |row| self.hash(values.value(row)))
            }
            DataType::LargeBinary => {
                let values = array.as_binary::<i64>();
                self.each(array, |row| self.hash(values.value(row)))
            }
            DataType::FixedSizeBinary(_) => {
                let values = array.as_fixed_size_binary();
                self.each(array, |row| self.hash(values.value(row)))
            }
            DataType::Struct(_) => {
                let images = self.rows(array.as_struct().columns(), array.len())?;
                self.each(array, |row| images.get(row).copied().unwrap_or(NULL))
            }
            DataType::List(_) => {
                let lists = array.as_list::<i32>();
                self.lists(array, lists.values(), lists.value_offsets())?
            }
            DataType::LargeList(_) => {
                let lists = array.as_list::<i64>();
                self.lists(array, lists.values(), lists.value_offsets())?
            }
            DataType::Map(..) => {
                let maps = array.as_map();
                self.lists(array, maps.entries(), maps.value_offsets())?
            }
            other => return Err(Error::new(Kind::Internal, format!("values of type {other} cannot be compared"))),
        })
    }

    /// An image for each row that is not null.
    fn each(&self, array: &dyn Array, image: impl Fn(usize) -> Image) -> Vec<Image> {
        let nulls = array.nulls();
        (0..array.len())
            .map(|row| if nulls.is_some_and(|nulls| nulls.is_null(row)) { NULL } else { image(row) })
            .collect()
    }

    fn fixed<T: ArrowPrimitiveType, const N: usize>(
        &self,
        array: &dyn Array,
        bytes: impl Fn(T::Native) -> [u8; N],
    ) -> Vec<Image> {
        let values = array.as_primitive::<T>();
        self.each(array, |row| self.hash(&bytes(values.value(row))))
    }

    /// Lists, each over the images of its elements; a map is a list of its entries.
    fn lists<O: Copy + TryInto<usize>>(
        &self,
        array: &dyn Array,
        elements: &dyn Array,
        offsets: &[O],
    ) -> Result<Vec<Image>> {
        let offset = |at: usize| offsets.get(at).and_then(|offset| (*offset).try_into().ok()).unwrap_or(0);
        // A slice of lists may refer to a part of the elements.
        let (first, last) = (offset(0), offset(array.len()));
        let elements = self.values(&elements.slice(first, last.saturating_sub(first)))?;
        Ok(self.each(array, |row| {
            let own = elements.get(offset(row) - first..offset(row + 1) - first);
            self.hash(own.unwrap_or_default().as_flattened())
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use arrow_array::builder::{Int32Builder, ListBuilder, MapBuilder, StringBuilder};
    use arrow_array::{
        BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array, Float64Array,
        Int32Array, Int64Array, LargeBinaryArray, ListArray, MapArray, RecordBatch, StringArray, StructArray,
        TimestampMicrosecondArray,
    };
    use proptest::prelude::*;

    fn images(column: impl Array + 'static) -> Vec<Image> {
        let rows = column.len();
        Imager::new(7).rows(&[Arc::new(column)], rows).unwrap()
    }

    fn all_differ(images: &[Image]) -> bool {
        (1..).zip(images).all(|(next, image)| !images[next..].contains(image))
    }

    fn texts(lists: &[Option<Vec<Option<&str>>>]) -> ListArray {
        let mut builder = ListBuilder::new(StringBuilder::new());
        for list in lists {
            for text in list.iter().flatten() {
                builder.values().append_option(*text);
            }
            builder.append(list.is_some());
        }
        builder.finish()
    }

    fn map(rows: &[Vec<(&str, Option<i32>)>]) -> MapArray {
        let mut builder = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
        for row in rows {
            for (key, value) in row {
                builder.keys().append_value(key);
                builder.values().append_option(*value);
            }
            builder.append(true).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn floats_are_bits() {
        let nans = [f64::NAN, f64::from_bits(0x7ff8_0000_0000_0001), -f64::NAN, 0.0, -0.0, f64::INFINITY];
        assert!(all_differ(&images(Float64Array::from(nans.to_vec()))));
        assert!(all_differ(&images(Float32Array::from(vec![f32::NAN, 0.0, -0.0]))));
        assert_eq!(images(Float64Array::from(vec![f64::NAN])), images(Float64Array::from(vec![f64::NAN])));
    }

    #[test]
    fn null_is_no_value_and_empty_is() {
        assert!(all_differ(&images(StringArray::from(vec![None, Some(""), Some("\0"), Some("a")]))));
        assert!(all_differ(&images(Int32Array::from(vec![None, Some(0)]))));
        assert!(all_differ(&images(BooleanArray::from(vec![None, Some(false), Some(true)]))));
        assert!(all_differ(&images(texts(&[
            None,
            Some(vec![]),
            Some(vec![None]),
            Some(vec![Some("")]),
            Some(vec![Some("a"), Some("b")]),
            Some(vec![Some("ab")]),
            Some(vec![Some("b"), Some("a")]),
        ]))));
        assert!(all_differ(&images(map(&[
            vec![],
            vec![("a", None)],
            vec![("a", Some(1))],
            vec![("a", Some(1)), ("a", Some(1))]
        ]))));
    }

    #[test]
    fn what_stands_under_a_null_does_not_count() {
        let nulls = Some(vec![false, true].into());
        let some = Int64Array::new(vec![5, 1].into(), nulls.clone());
        let other = Int64Array::new(vec![6, 1].into(), nulls);
        assert_eq!(images(some), images(other));
    }

    #[test]
    fn the_same_bytes_in_wider_or_narrower_offsets_are_the_same() {
        let bytes: [&[u8]; 2] = [b"abc", b""];
        assert_eq!(images(BinaryArray::from(bytes.to_vec())), images(LargeBinaryArray::from(bytes.to_vec())));
        let zoned = TimestampMicrosecondArray::from(vec![1]).with_timezone("+00:00");
        assert_eq!(images(zoned), images(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC")));
        assert_eq!(images(Date32Array::from(vec![1])), images(Int32Array::from(vec![1])));
    }

    #[test]
    fn a_slice_has_the_images_of_its_rows() {
        let lists = texts(&[Some(vec![Some("a")]), None, Some(vec![None, Some("c")]), Some(vec![])]);
        assert_eq!(images(lists.slice(1, 3)), images(lists)[1..]);
        let maps = map(&[vec![("a", Some(1))], vec![("b", None)], vec![]]);
        assert_eq!(images(maps.slice(1, 2)), images(maps)[1..]);
        let column = |name: &str, array: ArrayRef| (name.to_owned(), array, true);
        let structs = StructArray::from(
            RecordBatch::try_from_iter_with_nullable([
                column("a", Arc::new(Int32Array::from(vec![Some(1), None, Some(3)]))),
                column("b", Arc::new(texts(&[None, Some(vec![]), Some(vec![Some("x")])]))),
            ])
            .unwrap(),
        );
        assert!(all_differ(&images(structs.clone())));
        assert_eq!(images(structs.slice(1, 2)), images(structs)[1..]);
    }

    #[test]
    fn values_do_not_move_between_columns() {
        let row = |a: Option<i32>, b: Option<i32>| {
            let columns: [ArrayRef; 2] = [Arc::new(Int32Array::from(vec![a])), Arc::new(Int32Array::from(vec![b]))];
            Imager::new(7).rows(&columns, 1).unwrap()[0]
        };
        assert!(all_differ(&[row(Some(1), Some(2)), row(Some(2), Some(1)), row(None, Some(1)), row(Some(1), None)]));
    }

    proptest! {
        #[test]
        fn equal_rows_have_equal_images_and_others_have_others(
            rows in proptest::collection::vec((any::<i64>(), any::<i128>(), proptest::option::of(".{0,4}"), proptest::collection::vec(any::<u8>(), 5)), 1..40),
            at in any::<proptest::sample::Index>(),
            seed in any::<u64>(),
        ) {
            let images = |rows: &[(i64, i128, Option<String>, Vec<u8>)]| {
                let columns: [ArrayRef; 4] = [
                    Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
                    Arc::new(Decimal128Array::from_iter_values(rows.iter().map(|row| row.1))),
                    Arc::new(StringArray::from_iter(rows.iter().map(|row| row.2.as_deref()))),
                    Arc::new(FixedSizeBinaryArray::try_from_iter(rows.iter().map(|row| &row.3)).unwrap()),
                ];
                Imager::new(seed).rows(&columns, rows.len()).unwrap()
            };
            let whole = images(&rows);
            for (one, other) in rows.iter().zip(&whole) {
                for (row, image) in rows.iter().zip(&whole) {
                    prop_assert_eq!(one == row, other == image);
                }
                prop_assert_eq!(&images(std::slice::from_ref(one))[0], other);
            }
            let mut changed = rows.clone();
            let row = at.get(&rows);
            let index = at.index(rows.len());
            changed[index].2 = if row.2.is_none() { Some(String::new()) } else { None };
            prop_assert_ne!(images(&changed)[index], whole[index]);
        }
    }
}

//! How values stand in columns.

use anteroom_proto::cbor;
use anteroom_proto::cose::Signed;
use anteroom_proto::key::{Hash, PublicKey};
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::store::StoreError;

/// Longest CBOR value that is read back from a column.
const MAX_COLUMN: usize = 64 * 1024 * 1024;

/// A count or a time as SQLite has it. What doesn't fit is the largest that does.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The way back. No negative number is ever written.
pub(super) fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |problem| StoreError::Database { doing, problem: Box::new(problem) }
}

fn damaged(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |problem| StoreError::Damaged { what, problem: problem.to_string() }
}

/// Reads columns of one row; errors name the table's word.
pub(super) struct Columns<'a> {
    pub(super) row: &'a SqliteRow,
    pub(super) what: &'static str,
}

impl<'a> Columns<'a> {
    pub(super) fn new(row: &'a SqliteRow, what: &'static str) -> Self {
        Self { row, what }
    }

    fn wrong_length(&self, column: &str) -> StoreError {
        let problem = format!("{column} has a wrong length");
        StoreError::Damaged { what: self.what, problem }
    }

    pub(super) fn uint(&self, column: &str) -> Result<u64, StoreError> {
        self.row.try_get::<i64, _>(column).map(uint).map_err(damaged(self.what))
    }

    pub(super) fn maybe_uint(&self, column: &str) -> Result<Option<u64>, StoreError> {
        let value = self.row.try_get::<Option<i64>, _>(column).map_err(damaged(self.what))?;
        Ok(value.map(uint))
    }

    pub(super) fn text(&self, column: &str) -> Result<String, StoreError> {
        self.row.try_get(column).map_err(damaged(self.what))
    }

    pub(super) fn maybe_text(&self, column: &str) -> Result<Option<String>, StoreError> {
        self.row.try_get(column).map_err(damaged(self.what))
    }

    pub(super) fn bytes(&self, column: &str) -> Result<&'a [u8], StoreError> {
        self.row.try_get(column).map_err(damaged(self.what))
    }

    pub(super) fn maybe_bytes(&self, column: &str) -> Result<Option<&'a [u8]>, StoreError> {
        self.row.try_get(column).map_err(damaged(self.what))
    }

    pub(super) fn array<const N: usize>(&self, column: &str) -> Result<[u8; N], StoreError> {
        self.bytes(column)?.try_into().map_err(|_| self.wrong_length(column))
    }

    /// An array, or nothing where the column is an empty BLOB.
    pub(super) fn array_or_empty<const N: usize>(
        &self,
        column: &str,
    ) -> Result<Option<[u8; N]>, StoreError> {
        match self.bytes(column)? {
            [] => Ok(None),
            bytes => bytes.try_into().map(Some).map_err(|_| self.wrong_length(column)),
        }
    }

    pub(super) fn key(&self, column: &str) -> Result<PublicKey, StoreError> {
        PublicKey::try_from(self.array::<32>(column)?)
            .map_err(|error| StoreError::Damaged { what: self.what, problem: error.to_string() })
    }

    pub(super) fn hash(&self, column: &str) -> Result<Hash, StoreError> {
        Hash::try_from(self.array::<32>(column)?)
            .map_err(|error| StoreError::Damaged { what: self.what, problem: error.to_string() })
    }

    pub(super) fn maybe_hash(&self, column: &str) -> Result<Option<Hash>, StoreError> {
        match self.maybe_bytes(column)? {
            None => Ok(None),
            Some(_) => self.hash(column).map(Some),
        }
    }

    pub(super) fn signed<T>(&self, column: &str) -> Result<Signed<T>, StoreError> {
        Ok(Signed::from_bytes(self.bytes(column)?.to_vec()))
    }

    pub(super) fn cbor<T: DeserializeOwned>(&self, column: &str) -> Result<T, StoreError> {
        decode(self.what, self.bytes(column)?)
    }

    pub(super) fn maybe_cbor<T: DeserializeOwned>(
        &self,
        column: &str,
    ) -> Result<Option<T>, StoreError> {
        self.maybe_bytes(column)?.map(|bytes| decode(self.what, bytes)).transpose()
    }

    pub(super) fn parsed<T>(&self, column: &str) -> Result<T, StoreError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.text(column)?;
        text.parse().map_err(|error| StoreError::Damaged {
            what: self.what,
            problem: format!("{column} {text:?}: {error}"),
        })
    }
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    cbor::decode(bytes, MAX_COLUMN)
        .map_err(|error| StoreError::Damaged { what, problem: error.to_string() })
}

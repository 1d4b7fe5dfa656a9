//! Bodies, queries and numbers in paths, with the place of whatever is wrong in them.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use serde::de::DeserializeOwned;

use super::failure::Failure;

/// A JSON body of bounded length.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let message = rejection.body_text();
            match rejection.into_response().status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    Failure::too_large("body: it is longer than this request may be")
                }
                _ => Failure::invalid(format!("body: {message}")),
            }
        })?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| Failure::invalid(format!("body: {error}")))
    }
}

/// The parameters behind the path.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Query::<T>::try_from_uri(&parts.uri)
            .map(|Query(params)| Self(params))
            .map_err(|rejection| Failure::invalid(format!("query: {}", rejection.body_text())))
    }
}

/// The number of a revision in the path.
pub(super) struct Number(pub(super) u64);

impl<S: Send + Sync> FromRequestParts<S> for Number {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Failure::invalid(format!("path: {}", rejection.body_text())))?;
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u64>().ok().filter(|_| digits).map(Self).ok_or_else(|| {
            let text: String = text.chars().take(40).collect();
            Failure::invalid(format!("path: {text:?} isn't the number of a revision"))
        })
    }
}

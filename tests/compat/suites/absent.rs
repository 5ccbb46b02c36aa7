//! Stands for `reqwest` and `jsonschema`: one test of async-nats fetches a schema from the Internet with them. It is
//! not claimed, and building the two would take longer than everything else.

/// What `reqwest::get` gives.
pub struct Response;

impl Response {
    /// Never there.
    pub async fn json(self) -> Result<(), &'static str> {
        Err(NOWHERE)
    }
}

/// Fetches nothing.
pub async fn get(_url: impl AsRef<str>) -> Result<Response, &'static str> {
    Err(NOWHERE)
}

/// Never made.
pub struct JSONSchema;

impl JSONSchema {
    /// Fails.
    pub fn compile<S>(_schema: &S) -> Result<Self, &'static str> {
        Err(NOWHERE)
    }

    /// Never called.
    pub fn validate<D>(&self, _data: &D) -> Result<(), std::vec::IntoIter<&'static str>> {
        Ok(())
    }
}

const NOWHERE: &str = "there is no Internet here";

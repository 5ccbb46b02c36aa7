//! Single parts of the product, driven without sockets: the cases that the `micro` bench times and that the
//! `instructions` program counts.

pub mod apply;
pub mod dispatch;
pub mod parser;
pub mod subjects;
#[cfg(feature = "storage")]
pub mod writer;

/// A piece of work that can be repeated.
#[derive(Clone, Copy)]
pub struct Case {
    /// For `--only` and for tables. Two cases never have the same.
    pub name: &'static str,
    /// How many things, messages mostly, one call handles.
    pub per_call: u64,
    /// Sets everything up and gives the call.
    pub prepare: fn() -> Call,
}

/// Does the work once.
pub type Call = Box<dyn FnMut()>;

/// Every case there is. Those of the storage are there with the feature `storage`.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(parser::CASES);
    cases.extend(subjects::CASES);
    cases.extend(apply::CASES);
    cases.extend(dispatch::CASES);
    #[cfg(feature = "storage")]
    cases.extend(writer::CASES);
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_can_be_called_again_and_again() {
        for case in all() {
            let mut call = (case.prepare)();
            (0..3).for_each(|_| call());
        }
    }
}

//! The program as a user meets it: its files, messages and exit codes.
//!
//! Models are written as text and data as arrays into a folder of the test's own; the program runs in that folder, so
//! messages hold relative paths. A run that fails must leave the folder as it was.

mod commands;
mod data;
mod exports;
mod folders;
mod inspect;
mod interrupted;
mod merge;
mod models;
mod options;
mod outputs;
mod overwriting;
mod place;
mod plans;
#[path = "../support/mod.rs"]
mod support;
mod threads;

type Outcome = Result<(), Box<dyn std::error::Error>>;

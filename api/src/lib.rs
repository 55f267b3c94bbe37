//! berth-api: the HTTP server that AWS's clients talk to, and the `berth` command.
//!
//! A request goes through [`server`] (connections, limits), [`auth`] (whose it is), `app` (which service) and then
//! `ecs`, `logs`, `ssm`, `secretsmanager` or `berth`, each of which decodes, asks the [`berth_runtime::Runtime`], and encodes. ARNs, HTTP and
//! AWS's names of errors live here and nowhere else; what a task is, and all state, lives in the runtime.

pub mod app;
pub mod arn;
pub mod auth;
mod berth;
pub mod cli;
pub mod credentials;
mod decode;
mod ecs;
pub mod endpoint;
pub mod error;
mod eventstream;
mod logs;
mod operations;
mod other;
mod page;
pub mod reply;
mod role;
mod s3;
mod secretsmanager;
pub mod server;
mod session;
mod ssm;

pub use app::App;
pub use credentials::Credentials;

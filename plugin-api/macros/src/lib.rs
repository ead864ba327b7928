//! The export attributes and the configuration derive of `cofferdam-plugin-api`.
//!
//! They only *read* what the author wrote (which methods an `impl` block has, which fields a struct has)
//! and hand it to declarative code in `cofferdam-plugin-api`, where the work is done.

#![forbid(unsafe_code)]

mod config;
mod export;

use proc_macro::TokenStream;

/// Exports the type of an `impl Isolator for …` block as this library's plugin.
///
/// The methods in the block are the ones that the agent will call.
#[proc_macro_attribute]
pub fn isolator(arguments: TokenStream, item: TokenStream) -> TokenStream {
    export::expand("isolator", arguments.into(), item.into()).into()
}

/// Exports the type of an `impl Logger for …` block as this library's plugin.
///
/// The methods in the block are the ones that the agent will call.
#[proc_macro_attribute]
pub fn logger(arguments: TokenStream, item: TokenStream) -> TokenStream {
    export::expand("logger", arguments.into(), item.into()).into()
}

/// Describes a configuration type, so that the agent can check a plugin's table before it runs the plugin.
///
/// Doc comments become descriptions; `#[serde(default)]`, `#[serde(rename = "…")]`, `#[serde(rename_all =
/// "…")]` and `#[serde(deny_unknown_fields)]` are understood as serde understands them.
#[proc_macro_derive(PluginConfig, attributes(serde))]
pub fn plugin_config(item: TokenStream) -> TokenStream {
    config::expand(item.into()).into()
}

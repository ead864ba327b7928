//! The export attributes and the configuration derive of `cofferdam-plugin-api`.
//!
//! The macros only collect the methods of an `impl` block and the fields of a struct. They pass them to code in
//! `cofferdam-plugin-api`, which creates the exported items.

#![forbid(unsafe_code)]

mod config;
mod export;

use proc_macro::TokenStream;

/// Exports the type of an `impl Isolator for …` block as the plugin of this library.
///
/// The agent calls only those methods that the block implements.
#[proc_macro_attribute]
pub fn isolator(arguments: TokenStream, item: TokenStream) -> TokenStream {
    export::expand("isolator", arguments.into(), item.into()).into()
}

/// Exports the type of an `impl Logger for …` block as the plugin of this library.
///
/// The agent calls only those methods that the block implements.
#[proc_macro_attribute]
pub fn logger(arguments: TokenStream, item: TokenStream) -> TokenStream {
    export::expand("logger", arguments.into(), item.into()).into()
}

/// Exports the type of an `impl Hook for …` block as the plugin of this library.
///
/// The agent calls only those methods that the block implements.
#[proc_macro_attribute]
pub fn hook(arguments: TokenStream, item: TokenStream) -> TokenStream {
    export::expand("hook", arguments.into(), item.into()).into()
}

/// Generates the schema of a configuration type, with which the agent validates a plugin's table without running the
/// plugin.
///
/// Doc comments of fields become descriptions. The serde attributes `default`, `rename`, `rename_all`,
/// `deny_unknown_fields` and `with` have their usual effect; others are compile errors. `with` does not change the
/// schema, so it must accept the values that the type of the field accepts.
#[proc_macro_derive(PluginConfig, attributes(serde))]
pub fn plugin_config(item: TokenStream) -> TokenStream {
    config::expand(item.into()).into()
}

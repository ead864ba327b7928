//! Expands an export attribute on an `impl` block to the static items of a plugin library.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{ImplItem, ItemImpl};

pub fn expand(kind: &str, arguments: TokenStream, item: TokenStream) -> TokenStream {
    match parse(kind, &arguments, item.clone()) {
        Ok(export) => quote!(#item #export),
        // The block is kept, so that the compiler reports its errors as well.
        Err(error) => {
            let error = error.to_compile_error();
            quote!(#item #error)
        }
    }
}

fn parse(kind: &str, arguments: &TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(syn::Error::new_spanned(
            arguments,
            "this attribute takes no arguments; set name and requirements as constants in the `impl` block",
        ));
    }
    let block: ItemImpl = syn::parse2(item)?;
    if block.trait_.is_none() || !block.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(
            block.self_ty,
            "expected `impl Isolator for …`, `impl Logger for …` or `impl Hook for …` without generic parameters",
        ));
    }
    let methods: Vec<String> = block
        .items
        .iter()
        .filter_map(|item| match item {
            ImplItem::Fn(method) => Some(method.sig.ident.to_string()),
            _ => None,
        })
        .collect();
    let plugin = &block.self_ty;
    let export = format_ident!("__export_{kind}");
    Ok(quote!(::cofferdam_plugin_api::#export!(#plugin, [#(#methods),*]);))
}

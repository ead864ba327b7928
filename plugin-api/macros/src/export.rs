//! From an `impl` block to the static items that make a library a plugin.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{ImplItem, ItemImpl};

pub fn expand(kind: &str, arguments: TokenStream, item: TokenStream) -> TokenStream {
    match parse(kind, &arguments, item.clone()) {
        Ok(export) => quote!(#item #export),
        // The block stays, so that its own errors are shown too.
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
            "this attribute takes no arguments; name and requirements are constants of the block",
        ));
    }
    let block: ItemImpl = syn::parse2(item)?;
    if block.trait_.is_none() || !block.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(
            block.self_ty,
            "expected an `impl` block of the plugin's trait for one type without parameters",
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

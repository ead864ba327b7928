//! Derives `PluginConfig`: generates the schema of a configuration type.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Data, DeriveInput, Expr, ExprLit, Field, Fields, Lit, Meta};

pub fn expand(item: TokenStream) -> TokenStream {
    syn::parse2(item).and_then(|input| describe(&input)).unwrap_or_else(|error| error.to_compile_error())
}

fn describe(input: &DeriveInput) -> syn::Result<TokenStream> {
    let name = &input.ident;
    if !input.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(
            &input.generics,
            "a configuration type must not have generic parameters",
        ));
    }
    let container = Serde::of(&input.attrs)?;
    let schema = match &input.data {
        Data::Struct(data) => {
            let fields = match &data.fields {
                Fields::Named(fields) => {
                    let fields = fields.named.iter().map(|f| keys(f, &container));
                    fields.collect::<syn::Result<Vec<_>>>()?.concat()
                }
                Fields::Unit => Vec::new(),
                Fields::Unnamed(fields) => {
                    return Err(syn::Error::new_spanned(
                        fields,
                        "a configuration struct must have named fields, which are the keys of the table",
                    ));
                }
            };
            let closed = container.deny_unknown_fields;
            quote!(Schema::Table { fields: &[#(#fields),*], closed: #closed })
        }
        Data::Enum(data) => {
            let mut choices = Vec::new();
            for variant in &data.variants {
                if !matches!(variant.fields, Fields::Unit) {
                    return Err(syn::Error::new_spanned(
                        variant,
                        "a variant of a configuration enum must not have fields, as its values are strings",
                    ));
                }
                if let [_, ..] = &Serde::of(&variant.attrs)?.aliases[..] {
                    return Err(syn::Error::new_spanned(variant, "a value must not have an alias"));
                }
                choices.push(container.name_of(&variant.ident.to_string(), &variant.attrs, true)?);
            }
            quote!(Schema::Choice(&[#(#choices),*]))
        }
        Data::Union(_) => {
            return Err(syn::Error::new_spanned(name, "a union cannot be a configuration type"));
        }
    };
    Ok(quote! {
        impl ::cofferdam_plugin_api::PluginConfig for #name {
            const SCHEMA: &'static ::cofferdam_plugin_api::config::Schema = {
                use ::cofferdam_plugin_api::config::{Field, Schema};
                &#schema
            };
        }
    })
}

/// The keys that set a field: its name, and its aliases.
fn keys(field: &Field, container: &Serde) -> syn::Result<Vec<TokenStream>> {
    let Some(ident) = &field.ident else {
        return Err(syn::Error::new_spanned(field, "expected a named field"));
    };
    let name = container.name_of(&ident.to_string(), &field.attrs, false)?;
    let Serde { default, aliases, .. } = Serde::of(&field.attrs)?;
    let default = container.default || default;
    if !aliases.is_empty() && !default {
        return Err(syn::Error::new_spanned(
            field,
            "a field with an alias must have a default, as either of two keys cannot be required",
        ));
    }
    let ty = &field.ty;
    let key = |name: &str, description: String| {
        quote! {
            Field {
                name: #name,
                description: #description,
                optional: #default || <#ty as ::cofferdam_plugin_api::PluginConfig>::SCHEMA.is_optional(),
                schema: <#ty as ::cofferdam_plugin_api::PluginConfig>::SCHEMA,
            }
        }
    };
    let of_alias = |alias: &String| key(alias, format!("Another name of `{name}`."));
    let keys = std::iter::once(key(&name, documentation(&field.attrs))).chain(aliases.iter().map(of_alias));
    Ok(keys.collect())
}

fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(doc) if doc.path.is_ident("doc") => match &doc.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// The attributes `#[serde(…)]` that change which keys and values are accepted.
#[derive(Default)]
struct Serde {
    default: bool,
    deny_unknown_fields: bool,
    rename: Option<String>,
    aliases: Vec<String>,
    rename_all: Option<String>,
}

impl Serde {
    fn of(attributes: &[Attribute]) -> syn::Result<Self> {
        let mut found = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("default") {
                    found.default = true;
                    if meta.input.peek(syn::Token![=]) {
                        meta.value()?.parse::<Expr>()?;
                    }
                } else if meta.path.is_ident("deny_unknown_fields") {
                    found.deny_unknown_fields = true;
                } else if meta.path.is_ident("rename") {
                    found.rename = Some(meta.value()?.parse::<syn::LitStr>()?.value());
                } else if meta.path.is_ident("alias") {
                    found.aliases.push(meta.value()?.parse::<syn::LitStr>()?.value());
                } else if meta.path.is_ident("rename_all") {
                    found.rename_all = Some(meta.value()?.parse::<syn::LitStr>()?.value());
                } else if meta.path.is_ident("with") {
                    meta.value()?.parse::<Expr>()?;
                } else {
                    return Err(meta.error(
                        "`PluginConfig` does not support this serde attribute, as the schema might not match \
                         what serde accepts",
                    ));
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// The name that serde gives to a field or variant of this container.
    fn name_of(&self, ident: &str, attributes: &[Attribute], variant: bool) -> syn::Result<String> {
        if let Some(name) = Self::of(attributes)?.rename {
            return Ok(name);
        }
        let words =
            if variant { words_of_variant(ident) } else { ident.split('_').map(str::to_owned).collect() };
        Ok(match self.rename_all.as_deref() {
            None => ident.to_owned(),
            Some("lowercase") => words.concat(),
            Some("snake_case") => words.join("_"),
            Some("kebab-case") => words.join("-"),
            Some("SCREAMING_SNAKE_CASE") => words.join("_").to_uppercase(),
            Some(other) => {
                return Err(syn::Error::new(
                    proc_macro2::Span::call_site(),
                    format!("`PluginConfig` does not support `rename_all = \"{other}\"`"),
                ));
            }
        })
    }
}

/// `ReadOnly` → `read`, `only`.
fn words_of_variant(ident: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for character in ident.chars() {
        match words.last_mut() {
            Some(word) if !character.is_uppercase() => word.push(character),
            _ => words.push(character.to_lowercase().collect()),
        }
    }
    words
}

//! The pages of the documentation, those of `docs/` in the repository.
//!
//! Begin with [`concepts`] and [`embedding`]. They are here so that their examples are compiled and
//! their links lead to items; this module exists in the documentation only.
// Some items take a feature. With all of them, every link is checked.
#![cfg_attr(
    not(all(feature = "redis", feature = "testing")),
    allow(rustdoc::broken_intra_doc_links)
)]

/// A module for each page. `links.md` sends the links of the pages to modules and items: of several
/// definitions of one label the first counts.
///
/// A doctest that fails is reported for `links.md`: less the lines of that file, the number is the page's.
macro_rules! pages {
    ($($name:ident $page:literal)*) => {
        $(
            #[doc = include_str!("links.md")]
            #[doc = include_str!(concat!("../../docs/", $page))]
            pub mod $name {}
        )*
    };
}

pages! {
    concepts "concepts.md"
    embedding "embedding.md"
    clients "clients.md"
    http_api "http-api.md"
    server "server.md"
    cluster "cluster.md"
    guarantees "guarantees.md"
    performance "performance.md"
    from_django "from-django.md"
    faq "faq.md"
}

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}

//! Real plugin files, several of them rude.

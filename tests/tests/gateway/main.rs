//! The gateway through which programs call models: what passes, what is refused, and that every call is settled.

mod accounts;
mod bench;
mod caching;
mod crowding;
mod degrading;
mod double;
mod double_embeddings;
mod fitting;
mod passing;
mod purchases;
mod refusals;
mod replay;
mod sdks;
mod settling;
mod waiting;

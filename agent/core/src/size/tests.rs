mod parts;
mod search;

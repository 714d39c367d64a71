//! The engine: virtual servers, real servers, schedulers. Pure: time is an argument.

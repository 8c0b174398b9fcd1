//! Consistent hashing: values on which all implementations agree, the laws, and the policies in the
//! balancer.

use std::collections::HashSet;

use proptest::prelude::*;
use tokio::sync::watch;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_lb::{
    hash::{
        EndpointOrder, HashPolicy, HashSettingError, OnMissing, Overflow, borrowed, hashed,
        table::HashScheme,
    },
    *,
};

use crate::support::*;

mod balanced;
mod golden;
mod laws;
mod support;

use self::support::{names, number, owners, policy, ports, table};

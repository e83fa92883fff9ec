// SPDX-License-Identifier: Apache-2.0
//! Hash maps for names of kernel objects. The standard hasher is made to resist chosen keys and shows up
//! in every profile; what is kept here comes from the API server, and a bad bucket only costs time.

/// A hash map.
pub type Map<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// A hash set.
pub type Set<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;

// SPDX-License-Identifier: Apache-2.0
//! Hash maps with a fast hasher. The standard hasher resists collisions by chosen keys and is slower. The keys
//! here come from the API server or the kernel, and a collision only costs time.

pub type Map<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

pub type Set<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;

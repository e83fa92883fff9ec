// SPDX-License-Identifier: Apache-2.0
//! Ops on sets in rules mode `nftables`: a refused op does not affect the others of its transaction.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use integration::lab::{Netns, nft_table};
use kube_ipvs::core::mirror::comparison::Piece;
use kube_ipvs::core::model::sets::{Entry, SetId, SetKind};
use kube_ipvs::core::model::settings::{RulesMode, Settings};
use kube_ipvs::core::model::{Family, Protocol};
use kube_ipvs::core::plan::op::Op;
use kube_ipvs::core::plan::outcome::Cause;
use kube_ipvs::core::plan::subject::Part;
use kube_ipvs::kernel::Kernel;
use kube_ipvs::kernel::linux::LinuxKernel;

fn entry(n: u8) -> Entry {
    Entry::IpPort([10, 96, 0, n].into(), Protocol::Tcp, 80)
}

fn with_kernel(test: impl FnOnce(&Netns, &mut LinuxKernel) + Send) {
    let ns = Netns::new("node-a").unwrap();
    let settings = Settings { rules: RulesMode::Nftables, ..Settings::default() };
    ns.enter(|| test(&ns, &mut LinuxKernel::open(&settings).unwrap())).unwrap();
}

fn causes(kernel: &mut LinuxKernel, ops: &[Op]) -> Vec<Option<(Cause, bool)>> {
    let results = kernel.execute(&ops.iter().collect::<Vec<_>>());
    results.into_iter().map(|result| result.err().map(|error| (error.cause, error.uncertain))).collect()
}

#[test]
fn a_refused_op_does_not_affect_the_others() {
    with_kernel(|ns, kernel| {
        let set = |kind| SetId { kind, family: Family::V4 };
        let (ours, missing) = (set(SetKind::ClusterIp), set(SetKind::LoadBalancer));
        let ops = [
            Op::CreateSet(ours),
            Op::AddEntry(ours, entry(1)),
            Op::AddEntry(missing, entry(2)),
            Op::RemoveEntry(ours, entry(9)),
            Op::AddEntry(ours, entry(3)),
            Op::AddEntry(ours, entry(4)),
        ];
        let refused = Some((Cause::Missing, true));
        assert_eq!(causes(kernel, &ops), [None, None, refused, refused, None, None]);
        let added = |n: u8| format!("add KUBE-CLUSTER-IP 10.96.0.{n},tcp:80\n");
        let seen = nft_table::sets(ns).unwrap();
        assert!([1, 3, 4].map(added).iter().all(|line| seen.contains(line)), "{seen}");
        let Piece::Set(_, Some(read)) = kernel.read_part(Part::Set(ours)).unwrap() else { panic!("no set") };
        assert_eq!(read.members.len(), 3);
        // What exists already is no failure.
        assert_eq!(causes(kernel, &[Op::AddEntry(ours, entry(1))]), [None]);
        assert_eq!(
            causes(kernel, &[Op::RemoveEntry(ours, entry(1)), Op::RemoveEntry(ours, entry(3))]),
            [None; 2]
        );
        assert!(!nft_table::sets(ns).unwrap().contains("10.96.0.1,"));
    });
}

#[test]
fn a_set_of_another_type_is_replaced_with_its_table_and_grows_without_a_limit() {
    with_kernel(|ns, kernel| {
        let table = "table ip kube-ipvs {\n set KUBE-CLUSTER-IP { type ipv4_addr;\n }\n}";
        ns.exec_with(&["nft", "-f", "-"], Some(table)).unwrap();
        let set = SetId { kind: SetKind::ClusterIp, family: Family::V4 };
        let created = causes(kernel, &[Op::CreateSet(set), Op::AddEntry(set, entry(1))]);
        assert!(created.contains(&Some((Cause::WrongKind, true))), "{created:?}");
        ns.exec(&["nft", "delete", "table", "ip", "kube-ipvs"]).unwrap();
        let many = (0..70_000u32).map(|n| {
            let [_, high, middle, low] = n.to_be_bytes();
            Op::AddEntry(set, Entry::IpPort([10, 96 + high, middle, low].into(), Protocol::Udp, 53))
        });
        let ops: Vec<Op> = std::iter::once(Op::CreateSet(set)).chain(many).collect();
        let before = kernel.traffic().sends[1];
        assert!(causes(kernel, &ops).iter().all(Option::is_none));
        assert_eq!(kernel.traffic().sends[1] - before, 1, "one transaction");
        let Piece::Set(_, Some(read)) = kernel.read_part(Part::Set(set)).unwrap() else { panic!("no set") };
        assert_eq!(read.members.len(), 70_000);
    });
}

// SPDX-License-Identifier: Apache-2.0
//! Events about settings without effect, and about schedulers that refuse clients.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::real_server_tests::{TWO, cluster, external, scheduler};
use crate::core::model::options::{DirectReturn, Scheduler, ServiceOptions};
use crate::core::model::real_servers::ConnectionLimits;
use crate::core::model::service_defaults::{Namespaces, ServiceDefault};
use crate::core::model::settings::Settings;
use crate::core::plan::pass::Due;
use crate::store::Kind;
use crate::testing::{Agent, kernel};

/// One entry of `kubeIPVS.serviceDefaults`, for all Services.
fn for_all(options: ServiceOptions) -> Arc<[ServiceDefault]> {
    let options = Arc::new(options);
    [ServiceDefault { namespaces: Namespaces::All, requirements: Vec::new(), options }].into()
}

/// The scheduler in the kernel, which lacks `mh`, and the lines about what is ignored.
fn ignored(annotations: Value, weights: &str, settings: Settings) -> (String, Vec<String>) {
    let mut in_kernel = String::new();
    let lines = crate::testing::lines(|| {
        let mut fake = kernel();
        fake.missing_schedulers = vec!["mh"];
        let slice = json!({"kube-ipvs.io/weight": weights});
        let both = cluster(&annotations, &slice, &TWO).with(
            Kind::Service,
            &json!({"metadata": {"name": "other", "namespace": "d"},
                "spec": {"clusterIP": "10.96.0.99", "ports": [{"name": "p", "port": 80}]}}),
        );
        let mut agent = Agent::with_settings(fake, &both, settings);
        agent.converge(Due::Changes, 4);
        in_kernel = scheduler(&mut agent);
    });
    (in_kernel, lines.into_iter().filter(|line| line.contains("Ignored: ")).collect())
}

#[test]
fn weights_without_effect_are_told_with_what_has_an_effect() {
    let usual = crate::testing::settings;
    let (_, told) = ignored(json!({}), "10.244.1.5=0,web-7=2", usual());
    let why = "AnnotationIgnored: Service d/web: EndpointSlice d/web-1: annotation kube-ipvs.io/weight: \"web-7=2\" is not a \
               weight from 0 to 100 and not ADDRESS=WEIGHT; this part of it has no effect";
    assert!(told.len() == 1 && told[0].ends_with(why), "{told:#?}");
    let (_, told) = ignored(json!({"kube-ipvs.io/scheduler": "dh"}), "10.244.1.5=3", usual());
    let why = "AnnotationIgnored: Service d/web: the scheduler dh takes no account of weights and slow start, only weight 0 \
               has an effect; choose sh or mh";
    assert!(told.len() == 1 && told[0].ends_with(why), "{told:#?}");
    // The configured rr, which stands in for a scheduler that the kernel lacks, gives way to wrr.
    let (scheduler, told) = ignored(json!({"kube-ipvs.io/scheduler": "mh"}), "10.244.1.5=3", usual());
    assert!(
        scheduler == "wrr" && told.len() == 1 && told[0].contains("no scheduler mh"),
        "{scheduler} {told:#?}"
    );
}

#[test]
fn a_setting_of_the_configuration_without_effect_is_one_event_of_the_node() {
    let entry = ServiceOptions {
        scheduler: Some(Scheduler { name: "lc".into(), flags: 0 }),
        slow_start: Some(Duration::from_secs(30)),
        ..ServiceOptions::default()
    };
    let settings = || Settings { service_defaults: for_all(entry.clone()), ..crate::testing::settings() };
    let (scheduler, told) = ignored(json!({}), "1", settings());
    let why = "Node: SettingIgnored: a setting of kubeIPVS.serviceDefaults has no effect on Services of this node: the \
               scheduler lc takes no account of weights and slow start, only weight 0 has an effect; choose wlc";
    assert!(scheduler == "lc" && told.len() == 1 && told[0].ends_with(why), "{told:#?}");
    let direct = ServiceOptions { direct_return: Some(DirectReturn::Route), ..ServiceOptions::default() };
    let settings_of_direct = Settings { service_defaults: for_all(direct), ..crate::testing::settings() };
    let told = crate::testing::lines(|| {
        let cluster = external(&json!({}), &json!({}), &TWO, "Cluster", 80);
        let mut agent = Agent::with_settings(kernel(), &cluster, settings_of_direct);
        agent.converge(Due::Changes, 3);
    });
    let why = "Node: SettingIgnored: a setting of kubeIPVS.serviceDefaults has no effect on Services of this node: \
               directReturn: packets reach endpoints of other nodes only in a tunnel";
    assert_eq!(told.iter().filter(|line| line.contains("Ignored")).count(), 1, "{told:#?}");
    assert!(told.iter().any(|line| line.contains(why)), "{told:#?}");
    let (_, told) = ignored(json!({}), "10.244.1.5=3", settings());
    assert!(told.iter().any(|line| line.contains("AnnotationIgnored: Service d/web")), "{told:#?}");
}

#[test]
fn a_scheduler_that_refuses_clients_is_told_once_with_the_flags_to_choose() {
    let told_with = |service: Value, weights: &str, settings: Settings| {
        let lines = crate::testing::lines(|| {
            let slice = json!({"kube-ipvs.io/weight": weights});
            let mut agent = Agent::with_settings(kernel(), &cluster(&service, &slice, &TWO), settings);
            agent.converge(Due::Changes, 3);
        });
        lines.into_iter().filter(|line| line.contains("SchedulerRefusesClients")).collect::<Vec<String>>()
    };
    let with = |scheduler: &str| Settings { scheduler: scheduler.into(), ..crate::testing::settings() };
    let told = |service, weights, scheduler| told_with(service, weights, with(scheduler));
    let own = told(json!({"kube-ipvs.io/scheduler": "mh", "kube-ipvs.io/probe": "true"}), "1", "rr");
    let why = "some clients of Service d/web will be refused: the scheduler mh looks for no other endpoint if the one it \
               chose is closed by probe; choose scheduler mh with scheduler-flags mh-port,mh-fallback";
    assert!(own.len() == 1 && own[0].contains(why), "{own:#?}");
    let default = told(json!({}), "10.244.2.6=0", "sh");
    let why = "some clients of Service d/web will be refused: the scheduler sh looks for no other endpoint if the one it \
               chose is closed by weight 0; choose scheduler sh with scheduler-flags sh-fallback";
    assert!(default.len() == 1 && default[0].contains(why), "{default:#?}");
    let limits = ConnectionLimits { upper: 9, lower: 0 };
    let entry = ServiceOptions { max_connections: Some(limits), ..ServiceOptions::default() };
    let node = told_with(json!({}), "1", Settings { service_defaults: for_all(entry), ..with("mh") });
    let why = "Node: SchedulerRefusesClients: some clients of Services of this node will be refused: the scheduler mh looks \
               for no other endpoint if the one it chose is closed by max-connections; set scheduler: mh and \
               schedulerFlags: mh-port,mh-fallback in kubeIPVS.serviceDefaults";
    assert!(node.len() == 1 && node[0].ends_with(why), "{node:#?}");
    let none: [String; 0] = [];
    let fallback = json!({"kube-ipvs.io/scheduler": "mh", "kube-ipvs.io/scheduler-flags": "mh-fallback",
        "kube-ipvs.io/max-connections": "9"});
    assert_eq!(told(fallback, "10.244.2.6=0", "rr"), none);
    assert_eq!(told(json!({}), "1", "sh"), none);
}

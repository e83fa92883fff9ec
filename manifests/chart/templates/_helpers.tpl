{{- /* The name of the objects. */ -}}
{{- define "kube-ipvs.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- .Values.fullnameOverride | default $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "kube-ipvs.serviceAccount" -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- fail "serviceAccount.create is false: set serviceAccount.name to the service account that the pods shall use." -}}
{{- end -}}
{{- .Values.serviceAccount.name | default (include "kube-ipvs.name" .) -}}
{{- end -}}

{{- /* What selects the pods of both DaemonSets. */ -}}
{{- define "kube-ipvs.podLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* The labels of every object. */ -}}
{{- define "kube-ipvs.labels" -}}
{{ include "kube-ipvs.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* Writes the fields of the second map over those of the first. Sprig's mergeOverwrite cannot write false, 0 or "". */ -}}
{{- define "kube-ipvs.overlay" -}}
{{- $target := index . 0 -}}
{{- range $key, $value := index . 1 -}}
{{- $old := get $target $key -}}
{{- if kindIs "invalid" $value -}}{{- $_ := unset $target $key -}}
{{- else if and (kindIs "map" $value) (kindIs "map" $old) -}}{{- include "kube-ipvs.overlay" (list $old $value) -}}
{{- else -}}{{- $_ := set $target $key (deepCopy $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The image, from root, rules and canary. */ -}}
{{- define "kube-ipvs.image" -}}
{{- $image := .root.Values.image -}}
{{- $own := dict -}}
{{- if .canary }}{{ $own = .root.Values.canary.image }}{{ end -}}
{{- if not (or $own.tag $own.digest) }}{{ $own = $image }}{{ end -}}
{{- $suffix := ternary "-nftables" "" (eq .rules "nftables") -}}
{{- if and (hasSuffix "-nftables" $own.tag) (not $suffix) -}}
{{- fail (printf "The image with the tag %s has no iptables, and rules is %s. Set rules to nftables, or use the tag without -nftables." $own.tag .rules) -}}
{{- end -}}
{{- if $own.digest -}}
{{ $image.repository }}@{{ $own.digest }}
{{- else -}}
{{ $image.repository }}:{{ $own.tag | default (printf "%s%s" .root.Chart.AppVersion $suffix) }}
{{- end -}}
{{- end -}}

{{- /* The configuration, from root, rules and canary. */ -}}
{{- define "kube-ipvs.config" -}}
{{- $values := .root.Values -}}
{{- $config := .root.Files.Get (printf "files/%s.conf" $values.mode) | fromYaml -}}
{{- $ours := dict -}}
{{- if ne .rules "iptables" }}{{ $_ := set $ours "rules" .rules }}{{ end -}}
{{- if eq $values.mode "coexist" }}{{ $_ := set $ours "serviceProxyName" $values.serviceProxyName }}{{ end -}}
{{- if $ours }}{{ include "kube-ipvs.overlay" (list $config (dict "kubeIPVS" $ours)) }}{{ end -}}
{{- include "kube-ipvs.overlay" (list $config $values.config) -}}
{{- if .canary }}{{ include "kube-ipvs.overlay" (list $config $values.canary.config) }}{{ end -}}
{{- toYaml $config -}}
{{- end -}}

{{- /*
The node affinity of the first DaemonSet: no node of the canary. Terms are alternatives, expressions of a term must all
hold. A node is not of the canary if it lacks any of the labels, so each term is repeated for each label.
*/ -}}
{{- define "kube-ipvs.affinity" -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- if .Values.canary.enabled -}}
{{- $node := get $affinity "nodeAffinity" | default dict -}}
{{- $required := get $node "requiredDuringSchedulingIgnoredDuringExecution" | default dict -}}
{{- $terms := list -}}
{{- range $term := get $required "nodeSelectorTerms" | default (list dict) -}}
{{- range $key, $value := $.Values.canary.nodeSelector -}}
{{- $out := dict "key" $key "operator" "NotIn" "values" (list $value) -}}
{{- $terms = append $terms (merge (dict "matchExpressions" (append (get $term "matchExpressions" | default list) $out)) $term) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- toYaml $affinity -}}
{{- end -}}

{{- /* What differs between the two DaemonSets, from root and canary, as YAML. */ -}}
{{- define "kube-ipvs.agent" -}}
{{- $values := .root.Values -}}
{{- $name := include "kube-ipvs.name" .root -}}
{{- $rules := $values.rules -}}
{{- $nodes := $values.nodeSelector -}}
{{- if .canary -}}
{{- $name = printf "%s-canary" $name -}}
{{- $rules = $values.canary.rules | default $rules -}}
{{- $nodes = merge (dict) $values.canary.nodeSelector $nodes -}}
{{- end -}}
{{- $settings := dict "root" .root "canary" .canary "rules" $rules -}}
{{- $config := include "kube-ipvs.config" $settings -}}
{{- $parsed := fromYaml $config -}}
{{- $health := $parsed.healthzBindAddress -}}
name: {{ $name }}
configMap: {{ $name }}-{{ $config | sha256sum | trunc 10 }}
config: {{ toJson $config }}
rules: {{ $rules }}
programs: {{ ne $rules "nftables" }}
variant: {{ if eq $values.mode "coexist" }}coexist{{ else if eq $rules "nftables" }}nftables{{ else }}base{{ end }}
image: {{ include "kube-ipvs.image" $settings | quote }}
nodeSelector: {{ toJson $nodes }}
affinity: {{ ternary (toYaml $values.affinity) (include "kube-ipvs.affinity" .root) .canary | fromYaml | toJson }}
healthPort: {{ regexFind "[0-9]+$" $health }}
# The address that kubelet probes: the pod's, unless the health server listens at one address only.
healthHost: {{ regexReplaceAll "^\\[|\\]?:[0-9]+$" $health "" | regexFind "^.*[^0.:].*$" | quote }}
metricsPort: {{ regexFind "[0-9]+$" $parsed.metricsBindAddress }}
metricsLocal: {{ regexMatch "^(127\\.|\\[::1\\])" $parsed.metricsBindAddress }}
{{- end -}}

{{- /* The API server's address. */ -}}
{{- define "kube-ipvs.apiServer" -}}
KUBERNETES_SERVICE_HOST: {{ .Values.apiServer.host | quote }}
KUBERNETES_SERVICE_PORT: {{ .Values.apiServer.port | int | quote }}
{{- end -}}

{{- define "kube-ipvs.apiServerName" -}}
{{ include "kube-ipvs.name" . }}-api-server-{{ include "kube-ipvs.apiServer" . | sha256sum | trunc 10 }}
{{- end -}}

{{- /* Values that exclude each other. */ -}}
{{- define "kube-ipvs.check" -}}
{{- $values := .Values -}}
{{- if not $values.apiServer.host -}}
{{- fail "apiServer.host is empty. Set it to an address of the API server that the nodes reach without a ClusterIP, for example --set apiServer.host=10.0.0.5. `kubectl get endpointslices kubernetes` shows the addresses." -}}
{{- end -}}
{{- range $where, $config := dict "config" $values.config "canary.config" $values.canary.config -}}
{{- $ours := get $config "kubeIPVS" | default dict -}}
{{- if hasKey $ours "rules" -}}
{{- fail (printf "%s.kubeIPVS.rules: set %s instead, which also selects the image and its privileges." $where (ternary "canary.rules" "rules" (hasPrefix "canary" $where))) -}}
{{- end -}}
{{- if hasKey $ours "serviceProxyName" -}}
{{- fail (printf "%s.kubeIPVS.serviceProxyName: set mode to coexist, and serviceProxyName." $where) -}}
{{- end -}}
{{- end -}}
{{- if $values.canary.enabled -}}
{{- if not $values.canary.nodeSelector }}{{ fail "canary.nodeSelector is empty: name a label of the nodes of the canary." }}{{ end -}}
{{- range $key, $_ := $values.canary.nodeSelector -}}
{{- if hasKey $values.nodeSelector $key -}}
{{- fail (printf "canary.nodeSelector and nodeSelector both have the label %s. Use another label for the canary." $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.monitoring.podMonitor.enabled $values.monitoring.serviceMonitor.enabled -}}
{{- fail "monitoring.podMonitor and monitoring.serviceMonitor are both enabled: Prometheus would read every agent twice. Disable one." -}}
{{- end -}}
{{- if or $values.monitoring.podMonitor.enabled $values.monitoring.serviceMonitor.enabled -}}
{{- range $canary := ternary (list false true) (list false) $values.canary.enabled -}}
{{- $agent := include "kube-ipvs.agent" (dict "root" $ "canary" $canary) | fromYaml -}}
{{- if $agent.metricsLocal -}}
{{- fail (printf "Prometheus cannot reach the metrics of %s: metricsBindAddress is a loopback address. Set it to 0.0.0.0:%v in config." $agent.name $agent.metricsPort) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A DaemonSet, from root and agent (kube-ipvs.agent). manifests/base/daemonset.yaml explains it. */ -}}
{{- define "kube-ipvs.daemonset" -}}
{{- $values := .root.Values -}}
{{- $agent := .agent -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $agent.name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    k8s-app: {{ $agent.name }}
    {{- include "kube-ipvs.labels" .root | nindent 4 }}
spec:
  selector:
    matchLabels:
      k8s-app: {{ $agent.name }}
  {{- /* Helm keeps the default rollingUpdate when the type is set to OnDelete; Kubernetes refuses the two together. */}}
  updateStrategy:
    {{- ternary (omit $values.updateStrategy "rollingUpdate") $values.updateStrategy (eq $values.updateStrategy.type "OnDelete") | toYaml | nindent 4 }}
  minReadySeconds: {{ $values.minReadySeconds }}
  template:
    metadata:
      labels:
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        k8s-app: {{ $agent.name }}
        kube-ipvs-variant: {{ $agent.variant }}
        {{- include "kube-ipvs.podLabels" .root | nindent 8 }}
      {{- with $values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "kube-ipvs.serviceAccount" .root }}
      hostNetwork: true
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $values.image.pullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.seLinux }}
      securityContext:
        seLinuxOptions:
          {{- toYaml . | nindent 10 }}
      {{- end }}
      {{- with $agent.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $agent.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      terminationGracePeriodSeconds: 10
      initContainers:
      # Sets sysctls and loads kernel modules that do not load on demand.
      - name: node
        {{- include "kube-ipvs.container" (dict "root" .root "agent" $agent "flags" (list "--init-only")) | nindent 8 }}
        securityContext:
          privileged: true
          readOnlyRootFilesystem: true
        volumeMounts:
        - {name: config, mountPath: /etc/kube-ipvs, readOnly: true}
        {{- if $agent.programs }}
        - {name: modules, mountPath: /lib/modules, readOnly: true}
        - {name: xtables-lock, mountPath: /run/xtables.lock}
        {{- end }}
      containers:
      - name: kube-ipvs
        {{- include "kube-ipvs.container" (dict "root" .root "agent" $agent "flags" list) | nindent 8 }}
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities:
            drop: [ALL]
            add: {{ ternary (list "NET_ADMIN" "NET_RAW") (list "NET_ADMIN") $agent.programs | toJson }}
          seccompProfile: {type: RuntimeDefault}
        ports:
        - {name: healthz, containerPort: {{ $agent.healthPort }}}
        - {name: metrics, containerPort: {{ $agent.metricsPort }}}
        startupProbe:
          {{- include "kube-ipvs.probe" (list "/livez" $agent.healthHost) | nindent 10 }}
          periodSeconds: 2
          failureThreshold: 30
        readinessProbe:
          {{- include "kube-ipvs.probe" (list "/readyz" $agent.healthHost) | nindent 10 }}
          periodSeconds: 5
        livenessProbe:
          {{- include "kube-ipvs.probe" (list "/livez" $agent.healthHost) | nindent 10 }}
          periodSeconds: 20
          timeoutSeconds: 5
          failureThreshold: 6
        volumeMounts:
        - {name: config, mountPath: /etc/kube-ipvs, readOnly: true}
        {{- if $agent.programs }}
        - {name: xtables-lock, mountPath: /run/xtables.lock}
        {{- end }}
        - {name: leases, mountPath: /run/systemd/netif, readOnly: true}
        - {name: dhclient, mountPath: /var/lib/dhcp, readOnly: true}
      volumes:
      - name: config
        configMap: {name: {{ $agent.configMap }}}
      {{- if $agent.programs }}
      - name: modules
        hostPath: {path: /lib/modules}
      - name: xtables-lock
        hostPath: {path: /run/xtables.lock, type: FileOrCreate}
      {{- end }}
      - name: leases
        hostPath: {path: /run/systemd/netif, type: DirectoryOrCreate}
      - name: dhclient
        hostPath: {path: /var/lib/dhcp, type: DirectoryOrCreate}
{{- end -}}

{{- /* What both containers have, from root, agent and flags. */ -}}
{{- define "kube-ipvs.container" -}}
{{- $values := .root.Values -}}
image: {{ .agent.image | quote }}
{{- with $values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
command:
- /usr/local/bin/kube-ipvs
- --config=/etc/kube-ipvs/config.conf
- --hostname-override=$(NODE_NAME)
{{- range concat $values.extraArgs .flags }}
- {{ . | quote }}
{{- end }}
env:
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
envFrom:
- configMapRef: {name: {{ include "kube-ipvs.apiServerName" .root }}}
{{- with $values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* A probe, from a list of path and host. */ -}}
{{- define "kube-ipvs.probe" -}}
httpGet:
  path: {{ index . 0 }}
  port: healthz
  {{- with index . 1 }}
  host: {{ . | quote }}
  {{- end }}
{{- end -}}

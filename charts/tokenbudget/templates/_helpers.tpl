{{- define "tokenbudget.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tokenbudget.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "tokenbudget.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tokenbudget.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tokenbudget.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tokenbudget.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tokenbudget.labels" -}}
{{ include "tokenbudget.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tokenbudget.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tokenbudget.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tokenbudget.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Annotations of what exists only while the release is uninstalled; the value is the order among them. */}}
{{- define "tokenbudget.uninstallHook" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* What the operator's pod and that of the uninstall Job have in common. */}}
{{- define "tokenbudget.podSettings" -}}
{{- range $field := list "imagePullSecrets" "nodeSelector" "tolerations" "affinity" }}
{{- with get $.Values $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{ include "tokenbudget.podSecurity" . }}
{{- end -}}

{{/* What pod security asks of every pod in a restricted namespace. */}}
{{- define "tokenbudget.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  {{- with .Values.runAsUser }}
  runAsUser: {{ int64 . }}
  runAsGroup: {{ int64 . }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "tokenbudget.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "tokenbudget.defaultRedis" -}}
{{- with .Values.redis.urlSecretRef }}
{{- if .name -}}
- --default-redis-secret
- {{ printf "%s/%s" .name .key | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tokenbudget.port" -}}
{{- .Values.listen | splitList ":" | last -}}
{{- end -}}

{{/* Of the cluster, so the namespace is in its name. */}}
{{- define "tokenbudget.admissionPolicy" -}}
{{- printf "%s-attach-%s" (include "tokenbudget.fullname" .) .Release.Namespace -}}
{{- end -}}

{{/* What the operator may do where it watches: cluster-wide, or in one namespace. A comment over each rule says why. */}}
{{- define "tokenbudget.rules" -}}
# What to do. patch is for the finalizer, which makes sure that pod templates and the ledger are put back first.
- apiGroups: [tokenbudget.dev]
  resources: [tokenbudgets]
  verbs: [list, watch, patch]
# What is shown in kubectl get tokenbudgets.
- apiGroups: [tokenbudget.dev]
  resources: [tokenbudgets/status]
  verbs: [patch]
# The targets. patch is the server-side apply of the agent's entries in the pod template; nothing else is written.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, patch]
# Which LiteLLM processes there are, and which have ended for sure: evidence that their tokens may go to others.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- if not .Values.watchNamespaces }}
{{ include "tokenbudget.nodesRule" . }}
{{- end }}
# The most replicas that a target can come to, for the safe share.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch]
# get: Redis settings and hooks that a LiteLLM container takes from a ConfigMap, and whether one with the name of ours is
# somebody else's. The others: the agent and the policies beside the target, named tokenbudget-agent and
# tokenbudget-<deployment>. Names are only known at run time.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch, delete]
# The Redis URL or password that a TokenBudget or a LiteLLM container names. By name only: never list or watch.
- apiGroups: [""]
  resources: [secrets]
  {{- with .Values.rbac.secretNames }}
  resourceNames: {{ toJson . }}
  {{- end }}
  verbs: [get]
# What happened, on the TokenBudget.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- define "tokenbudget.nodesRule" -}}
# The node of a pod that vanished without its kubelet's word: gone, or ready ever since, it says that the processes have ended.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get]
{{- end -}}

{{/* Values that each are right and together are not. */}}
{{- define "tokenbudget.check" -}}
{{- if and (not .Values.leaderElection) (gt (int .Values.replicas) 1) -}}
{{- fail "leaderElection: false allows one replica at most: set replicas to 1, or leaderElection to true" -}}
{{- end -}}
{{- end -}}

{{/* What the operator calls; the same for the Job of helm uninstall. The context is networkPolicy. */}}
{{- define "tokenbudget.egress" -}}
egress:
# Names: of the API server, and of the Redis of each LiteLLM.
- ports:
  - {protocol: UDP, port: 53}
  - {protocol: TCP, port: 53}
{{- range $what, $peer := dict "The API server." .apiServer "The ledger: the Redis of each LiteLLM." .redis }}
# {{ $what }}
- ports:
  {{- range $peer.ports }}
  - {protocol: TCP, port: {{ . }}}
  {{- end }}
  {{- with $peer.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- with .extraEgress }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end -}}

{{/* The rights of a ServiceAccount: .name, .subject, .root, .lease (whether it takes part in the election), .hook. */}}
{{- define "tokenbudget.rbac" -}}
{{- $root := .root }}
{{- $meta := dict "name" .name "root" .root "hook" .hook }}
{{- if $root.Values.watchNamespaces }}
{{- range $root.Values.watchNamespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $.name }}
  namespace: {{ . | quote }}
  {{- include "tokenbudget.rbac.metadata" $meta | nindent 2 }}
rules:
{{ include "tokenbudget.rules" $root }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $.name }}
  namespace: {{ . | quote }}
  {{- include "tokenbudget.rbac.metadata" $meta | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $.name }}
subjects:
- kind: ServiceAccount
  name: {{ $.subject }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- if and $root.Values.rbac.nodes (not .hook) }}
---
# Nodes are in no namespace: nothing but this one rule is cluster-wide.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ .name }}-nodes
  {{- include "tokenbudget.rbac.metadata" $meta | nindent 2 }}
rules:
{{ include "tokenbudget.nodesRule" $root }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}-nodes
  {{- include "tokenbudget.rbac.metadata" $meta | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}-nodes
subjects:
- kind: ServiceAccount
  name: {{ .subject }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- else }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ .name }}
  {{- include "tokenbudget.rbac.metadata" $meta | nindent 2 }}
rules:
{{ include "tokenbudget.rules" $root }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  {{- include "tokenbudget.rbac.metadata" $meta | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
- kind: ServiceAccount
  name: {{ .subject }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- if .lease }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ .name }}-leader
  namespace: {{ $root.Release.Namespace }}
  {{- include "tokenbudget.rbac.metadata" $meta | nindent 2 }}
rules:
# The Lease that says which replica leads. Creation cannot be limited to a name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "tokenbudget.fullname" $root }}]
  verbs: [get, update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}-leader
  namespace: {{ $root.Release.Namespace }}
  {{- include "tokenbudget.rbac.metadata" $meta | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .name }}-leader
subjects:
- kind: ServiceAccount
  name: {{ .subject }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end -}}

{{- define "tokenbudget.rbac.metadata" -}}
labels:
  {{- include "tokenbudget.labels" .root | nindent 2 }}
{{- with .hook }}
annotations:
  {{- include "tokenbudget.uninstallHook" . | nindent 2 }}
{{- end }}
{{- end -}}

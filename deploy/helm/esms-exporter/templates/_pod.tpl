{{- define "esms-exporter.pod" -}}
metadata:
  labels:
    {{- include "esms-exporter.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "esms-exporter.serviceAccount" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  # Longer than `shutdown_timeout`, so that all results are written before the end.
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.replicas.enabled }}
  # On different nodes and zones if possible.
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "esms-exporter.selector" $ | nindent 10 }}
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  containers:
    - name: exporter
      image: {{ include "esms-exporter.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - --config.file=/etc/esms-exporter/config.yaml
        - --web.open-probes
        - --log.format=json
        {{- with include "esms-exporter.prefix" . }}
        - --web.route-prefix={{ . }}
        {{- end }}
        {{- with .Values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.env }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: 10375
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      # The migration of an older ledger may take minutes.
      startupProbe:
        httpGet:
          path: {{ include "esms-exporter.prefix" . }}/-/healthy
          port: http
          scheme: {{ upper .Values.scheme }}
        timeoutSeconds: 5
        periodSeconds: 5
        failureThreshold: 120
      livenessProbe:
        httpGet:
          path: {{ include "esms-exporter.prefix" . }}/-/healthy
          port: http
          scheme: {{ upper .Values.scheme }}
        timeoutSeconds: 5
        periodSeconds: 10
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: {{ include "esms-exporter.prefix" . }}/-/ready
          port: http
          scheme: {{ upper .Values.scheme }}
        timeoutSeconds: 5
        periodSeconds: 10
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/esms-exporter
          readOnly: true
        - name: keys
          mountPath: /run/esms-exporter
          readOnly: true
        {{- if not .Values.replicas.enabled }}
        - name: ledger
          mountPath: /data
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "esms-exporter.name" . }}
    - name: keys
      secret:
        secretName: {{ include "esms-exporter.secret" . }}
        # Readable for the owner and, with `fsGroup`, for the group.
        defaultMode: 0400
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

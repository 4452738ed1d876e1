// A monitoring mixin: the rules and dashboards beside this file, adapted by `_config`.
// docs/alerts.md shows how to use it.

local groups = std.flattenArrays([
  std.parseYaml(text).groups
  for text in [
    importstr 'rules/alerts.yaml',
    importstr 'rules/balance.yaml',
    importstr 'rules/recording.yaml',
    importstr 'rules/slo.yaml',
    importstr 'rules/thresholds.yaml',
  ]
]);
local dashboards = {
  'esms-api.json': importstr 'dashboards/esms-api.json',
  'esms-exporter.json': importstr 'dashboards/esms-exporter.json',
  'esms-overview.json': importstr 'dashboards/esms-overview.json',
};

local isAlert(rule) = std.objectHas(rule, 'alert');
local rules = std.flattenArrays([group.rules for group in groups]);
local thresholds = {
  [rule.record]: rule.expr
  for rule in rules
  if !isAlert(rule) && std.startsWith(rule.record, 'global:')
};
local objective = 'global:esms_call_success:objective';

local firstAlert = std.filter(isAlert, rules)[0];
local runbookUrl = std.strReplace(
  firstAlert.annotations.runbook_url, '/%s.md' % firstAlert.alert, ''
);

// Return the length of the name at the start of a text.
local nameLength(text) =
  local others = [
    i
    for i in std.range(0, std.length(text) - 1)
    if !std.member('abcdefghijklmnopqrstuvwxyz0123456789_', text[i])
  ];
  if others == [] then std.length(text) else others[0];

// Return an expression whose series all meet a selector. Recorded series, which have a colon before
// or behind, are made of such series.
local select(expr, selector) =
  local parts = std.split(expr, 'esms_');
  local selected(before, text) =
    local length = nameLength(text);
    local name = text[:length], rest = text[length:];
    if std.endsWith(before, ':') || std.startsWith(rest, ':') then text
    else if std.startsWith(rest, '{') then '%s{%s, %s' % [name, selector, rest[1:]]
    else '%s{%s}%s' % [name, selector, rest];
  local ours = std.join('esms_', [parts[0]] + [
    selected(parts[i - 1], parts[i])
    for i in std.range(1, std.length(parts) - 1)
  ]);
  std.strReplace(
    std.strReplace(ours, 'up == 0', 'up{%s} == 0' % selector), 'up{job', 'up{%s, job' % selector
  );

// Return a text as it is written within a string of JSON.
local inJson(text) =
  local quoted = std.escapeStringJson(text);
  quoted[1:std.length(quoted) - 1];

{
  _config+:: {
    // Matchers that all series of the exporter have to meet, such as 'cluster="prod"'.
    selector: '',
    // The share of calls that should be delivered.
    objective: thresholds[objective],
    // The other thresholds, by series.
    thresholds: { [name]: thresholds[name] for name in std.objectFields(thresholds) if name != objective },
    // The folder of the runbooks.
    runbookUrl: runbookUrl,
  },

  local config = self._config,
  local values = config.thresholds { [objective]: config.objective },
  local asText(value) = if std.isString(value) then value else std.manifestJsonMinified(value),
  local checked =
    local unknown = std.setDiff(std.objectFields(values), std.objectFields(thresholds));
    local share = std.parseJson(asText(config.objective));
    assert unknown == [] : 'unknown thresholds: ' + std.join(', ', unknown);
    assert share > 0 && share < 1 : 'the objective has to be between 0 and 1';
    values,

  local adaptedRule(rule) =
    local expr = if config.selector == '' then rule.expr else select(rule.expr, config.selector);
    if isAlert(rule) then rule {
      expr: expr,
      annotations+: { runbook_url: '%s/%s.md' % [config.runbookUrl, rule.alert] },
    } else rule {
      expr: if rule.record in checked then asText(checked[rule.record]) else expr,
    },
  local adaptedGroups = [group { rules: std.map(adaptedRule, group.rules) } for group in groups],
  local hasAlerts(group) = std.length(std.filter(isAlert, group.rules)) > 0,
  prometheusAlerts+:: { groups+: std.filter(hasAlerts, adaptedGroups) },
  prometheusRules+:: { groups+: [group for group in adaptedGroups if !hasAlerts(group)] },

  local adaptedDashboard(json) =
    local selector = inJson(config.selector);
    local linked = std.strReplace(json, inJson(runbookUrl), inJson(config.runbookUrl));
    if selector == '' then linked else std.strReplace(
      std.strReplace(linked, '{job=~', '{%s, job=~' % selector),
      'label_values(esms_exporter_build_info, job)',
      'label_values(esms_exporter_build_info{%s}, job)' % selector
    ),
  grafanaDashboards+:: {
    [name]: std.parseJson(adaptedDashboard(dashboards[name]))
    for name in std.objectFields(dashboards)
  },
}

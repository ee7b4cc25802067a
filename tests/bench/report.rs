//! The results: rows of named facts, printed as tables that are also Markdown, or as JSON.

use serde_json::{Map, Value, json};

pub struct Row {
    section: String,
    name: String,
    fs: String,
    facts: Vec<(String, Value)>,
    /// Medians of the single rivals or stages, in ms.
    details: Vec<(String, f64)>,
    within: Option<bool>,
}

impl Row {
    pub fn new(section: &str, name: &str, fs: &str) -> Row {
        eprintln!("{section}: {name} on {fs}");
        let (section, name, fs) = (section.to_owned(), name.to_owned(), fs.to_owned());
        Row { section, name, fs, facts: Vec::new(), details: Vec::new(), within: None }
    }
    /// Milliseconds, or a ratio.
    pub fn number(mut self, key: &str, value: f64) -> Row {
        self.facts.push((key.to_owned(), json!((value * 1000.0).round() / 1000.0)));
        self
    }
    pub fn count(mut self, key: &str, value: u32) -> Row {
        self.facts.push((key.to_owned(), json!(value)));
        self
    }
    pub fn text(mut self, key: &str, value: &str) -> Row {
        self.facts.push((key.to_owned(), json!(value)));
        self
    }
    pub fn detail(mut self, name: &str, ms: f64) -> Row {
        self.details.push((name.to_owned(), ms));
        self
    }
    /// Whether an aim was met; of several all must be.
    pub fn within(mut self, met: bool) -> Row {
        self.within = Some(self.within.unwrap_or(true) && met);
        self
    }

    /// What `json` wrote, but for medians of rivals and aims.
    pub fn read(line: &str) -> Option<Row> {
        let mut all: Map<String, Value> = serde_json::from_str(line).ok()?;
        let mut word = |key| Some(all.remove(key)?.as_str()?.to_owned());
        let (section, name, fs) = (word("section")?, word("name")?, word("fs")?);
        Some(Row { section, name, fs, facts: all.into_iter().collect(), details: Vec::new(), within: None })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn is_of(&self, section: &str) -> bool {
        self.section == section
    }
    pub fn get(&self, key: &str) -> Option<f64> {
        self.facts.iter().find(|(k, _)| *k == key)?.1.as_f64()
    }

    pub fn json(&self) -> Value {
        let mut out = Map::new();
        out.insert("section".into(), json!(self.section));
        out.insert("name".into(), json!(self.name));
        out.insert("fs".into(), json!(self.fs));
        for (key, value) in &self.facts {
            out.insert(key.clone(), value.clone());
        }
        if !self.details.is_empty() {
            let details = self.details.iter().map(|(n, ms)| (n.clone(), json!((ms * 10.0).round() / 10.0)));
            out.insert("alone_ms".into(), Value::Object(details.collect()));
        }
        if let Some(met) = self.within {
            out.insert("met".into(), json!(met));
        }
        Value::Object(out)
    }

    fn cell(&self, column: &str) -> String {
        match column {
            "what" => self.name.clone(),
            "on" => self.fs.clone(),
            "alone, ms" => {
                let all: Vec<_> = self.details.iter().map(|(n, ms)| format!("{n} {ms:.0}")).collect();
                all.join(", ")
            }
            "aim met" => match self.within {
                None => String::new(),
                Some(met) => if met { "yes" } else { "NO" }.to_owned(),
            },
            key => match self.facts.iter().find(|(k, _)| *k == key).map(|(_, v)| v) {
                None => String::new(),
                Some(Value::String(s)) => s.clone(),
                Some(v) if v.is_u64() => v.to_string(),
                Some(v) => {
                    let n = v.as_f64().unwrap_or_default();
                    if n >= 100.0 {
                        format!("{n:.0}")
                    } else if n >= 10.0 {
                        format!("{n:.1}")
                    } else {
                        format!("{n:.2}")
                    }
                }
            },
        }
    }
}

pub fn json(header: &[(String, String)], rows: &[Row]) -> Value {
    let header: Map<String, Value> = header.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    json!({ "machine": header, "rows": rows.iter().map(Row::json).collect::<Vec<_>>() })
}

/// One table per section, columns where any row has something to say.
pub fn print(header: &[(String, String)], rows: &[Row]) {
    for (key, value) in header {
        println!("{key}: {value}");
    }
    let mut sections: Vec<&str> = Vec::new();
    for row in rows {
        if !sections.contains(&row.section.as_str()) {
            sections.push(&row.section);
        }
    }
    for section in sections {
        println!("\n## {section}\n");
        let rows: Vec<&Row> = rows.iter().filter(|r| r.section == section).collect();
        let mut columns = vec!["what", "on"];
        for (key, _) in rows.iter().flat_map(|r| &r.facts) {
            if !columns.contains(&key.as_str()) {
                columns.push(key);
            }
        }
        columns.extend(["alone, ms", "aim met"]);
        columns.retain(|c| rows.iter().any(|r| !r.cell(c).is_empty()));
        let wide = |c: &str| rows.iter().map(|r| r.cell(c).len()).max().unwrap_or(0).max(c.len());
        let line = |cells: Vec<String>| {
            let padded: Vec<_> =
                cells.iter().zip(&columns).map(|(x, c)| format!("{x:w$}", w = wide(c))).collect();
            println!("| {} |", padded.join(" | "));
        };
        line(columns.iter().map(|c| (*c).to_owned()).collect());
        line(columns.iter().map(|c| "-".repeat(wide(c))).collect());
        for row in &rows {
            line(columns.iter().map(|c| row.cell(c)).collect());
        }
    }
}

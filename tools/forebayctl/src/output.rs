//! Results as a table, as JSON, or as JSON objects line by line.
//!
//! A result is a list of JSON objects, or one; tables are made of them, so that all formats show the same.
//! Tables are plain text: no colours, no frames, a heading in capitals.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::errors::CtlError;
use crate::stdout;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One JSON value: an object, or an array of them
    Json,
    /// One JSON object a line
    Ndjson,
}

/// Shows a list, as a table with `columns` (keys of its objects).
pub fn list(format: Format, columns: &[&str], items: &[Value]) -> Result<(), CtlError> {
    print(&list_text(format, columns, items))
}

/// Shows one object.
pub fn object(format: Format, item: &Value) -> Result<(), CtlError> {
    print(&object_text(format, item))
}

/// Parts two tables.
pub fn blank_line() -> Result<(), CtlError> {
    print("\n")
}

fn print(text: &str) -> Result<(), CtlError> {
    stdout::print(text.as_bytes()).map_err(CtlError::Output)
}

fn list_text(format: Format, columns: &[&str], items: &[Value]) -> String {
    match format {
        Format::Table => {
            let mut table = plain_table();
            table.set_header(columns.iter().map(|column| column.replace('_', " ").to_uppercase()));
            table.add_rows(items.iter().map(|item| columns.iter().map(|column| cell(&item[*column]))));
            text_of(&table)
        }
        Format::Json => format!("{:#}\n", Value::from(items.to_vec())),
        Format::Ndjson => items.iter().map(|item| format!("{item}\n")).collect(),
    }
}

fn object_text(format: Format, item: &Value) -> String {
    match format {
        Format::Table => {
            let mut table = plain_table();
            add_rows(&mut table, "", item);
            text_of(&table)
        }
        Format::Json => format!("{item:#}\n"),
        Format::Ndjson => format!("{item}\n"),
    }
}

/// A row for each value; those of nested objects have the path in front.
fn add_rows(table: &mut Table, path: &str, value: &Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                add_rows(table, &path, value);
            }
        }
        value => {
            table.add_row([path.to_owned(), cell(value)]);
        }
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

fn text_of(table: &Table) -> String {
    let lines =
        table.lines().map(|line| line.trim_end().strip_prefix(' ').unwrap_or(&line).trim_end().to_owned());
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_reads_the_same_in_every_format() {
        let items =
            [json!({"name": "a", "next_offset": 10, "x": 0}), json!({"name": "bcd", "next_offset": 2})];
        let table = list_text(Format::Table, &["name", "next_offset"], &items);
        assert_eq!(table, "NAME  NEXT OFFSET\na     10\nbcd   2\n");
        let json: Value = serde_json::from_str(&list_text(Format::Json, &[], &items)).unwrap();
        assert_eq!(json, Value::from(items.to_vec()));
        let lines = list_text(Format::Ndjson, &[], &items);
        let parsed: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(parsed, items);
    }

    #[test]
    fn an_object_is_a_row_for_each_value() {
        let item = json!({"name": "q", "labels": {"k": "v"}, "features": ["a", "b"], "age": null});
        assert_eq!(
            object_text(Format::Table, &item),
            "name      q\nlabels.k  v\nfeatures  a, b\nage       -\n"
        );
        assert_eq!(object_text(Format::Json, &item).lines().count(), 11);
    }
}

//! `export`: what a marketplace needs to take an image: source, digest, size, format. Reads the whole
//! image for its MD5, under a shared lease. Contract 2.4.

use super::{Ctx, Ds, block};
use crate::data;
use crate::image::{Format, probe};
use crate::lock::Mode;
use crate::one::DsRequest;
use crate::sdm::{Job, settle};
use crate::sys::{Bytes, Class};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::fs::File;

pub fn run(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    if req.datastore.is_block() {
        return block::export(ctx, req, job);
    }
    let ds = Ds::open(ctx, req, job)?;
    let (name, place) = ds.source()?;
    let _lease = ds.lease(&[(&place, Mode::Shared)])?;
    settle::acknowledge(&ds.domain, &place, job);
    let object = ds.resolve(&place)?;
    let crate::engine::Place::Public(real) = &object.place else {
        return Err(refuse(Class::Internal, format!("{name} leads to no public object")));
    };
    let path = ds.path(real)?;
    let file = File::open(&path).with_context(|| format!("opening image {name}"))?;
    let format = if ds.raw_on_record() {
        Format::Raw
    } else {
        let found = probe(&file).with_context(|| format!("looking at image {name}"))?;
        ds.known_chain(&path, &found)?;
        found.format
    };
    let md5 = data::digest_of(&file, data::Algo::Md5, &job.watch())
        .with_context(|| format!("reading image {name}"))?;
    let size = req.image()?.size.unwrap_or(object.size);
    Ok(answer(&name.source(&req.datastore.base_path), &md5, size, format))
}

pub(super) fn answer(source: &str, md5: &str, size: Bytes, format: Format) -> String {
    let [source, md5, size, format] =
        [source, md5, &size.as_mib_up().to_string(), format.opennebula()].map(cdata);
    format!(
        "<IMPORT_INFO><IMPORT_SOURCE>{source}</IMPORT_SOURCE><MD5>{md5}</MD5><SIZE>{size}</SIZE>\
         <FORMAT>{format}</FORMAT><DISPOSE>NO</DISPOSE></IMPORT_INFO>"
    )
}

fn cdata(text: &str) -> String {
    format!("<![CDATA[{}]]>", text.replace("]]>", "]]]]><![CDATA[>"))
}

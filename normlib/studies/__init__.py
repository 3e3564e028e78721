"""The studies: a room for each chapter, in it one file per source, named by its BibTeX key; one line per study here."""

from __future__ import annotations

from normlib.lab import Study
from normlib.registry import Registry

STUDIES = Registry(
    "study",
    {
        # 1 Origins
        "lecun1998.hessian": "normlib.studies.origins.lecun1998:hessian_is_second_moment",
        "lecun1998.rates": "normlib.studies.origins.lecun1998:rates",
        "lecun1998.spectrum": "normlib.studies.origins.lecun1998_images:spectrum",
        "lecun1998.predicted_rate": "normlib.studies.origins.lecun1998_predicted:predicted_rate",
        "lecun1998.activations": "normlib.studies.origins.lecun1998_activations:activations",
        "schraudolph1998.centering": "normlib.studies.origins.schraudolph1998:centering",
        "glorot2010.init": "normlib.studies.origins.glorot2010:init",
        "glorot2010.saturation": "normlib.studies.origins.glorot2010:saturation",
        "he2015.depth": "normlib.studies.origins.he2015:depth",
        "wadia2021.whitening": "normlib.studies.origins.wadia2021:whitening",
        # 2 Batch Normalization
        "ioffe2015.noise": "normlib.studies.batch.ioffe2015_noise:noise",
        "ioffe2015.inference": "normlib.studies.batch.ioffe2015_inference:inference",
        "ioffe2015.fig1": "normlib.studies.batch.ioffe2015_fig1:figure1",
        "notes.placement": "normlib.studies.batch.placement:placement",
        "notes.covariate_shift": "normlib.studies.batch.covariate_shift:covariate_shift",
        "ioffe2015.backward": "normlib.studies.batch.ioffe2015_backward:backward",
        "ioffe2015.bias_blowup": "normlib.studies.batch.ioffe2015_blowup:bias_blowup",
        "gallery.batch": "normlib.studies.batch.gallery:batch",
        "gallery.batch_effects": "normlib.studies.batch.gallery_effects:effects",
        "gallery.batch_running": "normlib.studies.batch.gallery_effects:running",
        "gallery.batch_trained": "normlib.studies.batch.gallery_trained:trained",
        "ioffe2015.scale_invariance": "normlib.studies.batch.ioffe2015_invariance:scale_invariance",
        "ioffe2015.jacobian": "normlib.studies.batch.ioffe2015_jacobian:jacobian",
        "yang2019.growth": "normlib.studies.batch.yang2019:growth",
        "notes.misreadings": "normlib.studies.batch.misreadings:misreadings",
        "notes.misreadings_why": "normlib.studies.batch.misreadings_why:why",
        "ioffe2015.rates": "normlib.studies.batch.ioffe2015_rates:rates",
        "ioffe2015.sigmoid": "normlib.studies.batch.ioffe2015_sigmoid:sigmoid",
        "notes.drawbacks": "normlib.studies.batch.drawbacks:drawbacks",
        "notes.leakage": "normlib.studies.batch.leakage:leakage",
        "vanlaarhoven2017.effective_rate": "normlib.studies.batch.vanlaarhoven2017:effective_rate",
        "arora2019.autorate": "normlib.studies.batch.arora2019:autorate",
        # 3 Layer, Group and the other flavors
        "wu2018.axes": "normlib.studies.flavors.wu2018_axes:axes",
        "ba2016.table1": "normlib.studies.flavors.ba2016_table1:table1",
        "ba2016.geometry": "normlib.studies.flavors.ba2016_geometry:geometry",
        "wu2018.curves": "normlib.studies.flavors.wu2018_curves:curves",
        "wu2018.groups": "normlib.studies.flavors.wu2018_groups:groups",
        "wu2018.percentiles": "normlib.studies.flavors.wu2018_percentiles:percentiles",
        "peng2018.sync": "normlib.studies.flavors.peng2018:sync",
        "peng2018.processes": "normlib.studies.flavors.peng2018_processes:processes",
        "singh2020.frn": "normlib.studies.flavors.singh2020:frn",
        "liu2020.evonorm": "normlib.studies.flavors.liu2020:evonorm",
        "luo2019.switch": "normlib.studies.flavors.luo2019:switch",
        "hoffer2017.ghost": "normlib.studies.flavors.hoffer2017:ghost",
        "ba2016.fig6": "normlib.studies.flavors.ba2016_fig6:figure6",
        "zhang2019rms.mean": "normlib.studies.flavors.zhang2019rms:mean",
        "zhang2019rms.speed": "normlib.studies.flavors.zhang2019rms_speed:speed",
        "wu2018.batch_size": "normlib.studies.flavors.wu2018_batch_size:batch_size",
        "wu2018.damage": "normlib.studies.flavors.wu2018_damage:damage",
        "notes.rule_of_thumb": "normlib.studies.flavors.rule_of_thumb:rule_of_thumb",
        "huang2018.whitening": "normlib.studies.flavors.huang2018:whitening",
        "ba2016.recurrent": "normlib.studies.flavors.ba2016_recurrent:recurrent",
        "cooijmans2017.lstm": "normlib.studies.flavors.cooijmans2017_lstm:lstm",
        "cooijmans2017.gain": "normlib.studies.flavors.cooijmans2017_gain:gain",
        "salimans2016.start": "normlib.studies.flavors.salimans2016:start",
        "salimans2016.training": "normlib.studies.flavors.salimans2016_training:training",
        "ulyanov2016.contrast": "normlib.studies.flavors.ulyanov2016:contrast",
        "notes.map": "normlib.studies.flavors.the_map:the_map",
        "qiao2019.ws": "normlib.studies.flavors.qiao2019:ws",
        "ioffe2017.renorm": "normlib.studies.flavors.ioffe2017:renorm",
        # 4 Internal covariate shift or smoothness
        "santurkar2018.fig1": "normlib.studies.smoothness.santurkar2018_fig1:figure1",
        "santurkar2018.moments": "normlib.studies.smoothness.santurkar2018_moments:moments",
        "santurkar2018.theorems": "normlib.studies.smoothness.santurkar2018_theorems:theorems",
        "santurkar2018.gain": "normlib.studies.smoothness.santurkar2018_gain:gain",
        "bjorck2018.rates": "normlib.studies.smoothness.bjorck2018:rates",
        "balduzzi2017.shattered": "normlib.studies.smoothness.balduzzi2017:shattered",
        "santurkar2018.fig3": "normlib.studies.smoothness.santurkar2018_fig3:figure3",
        "santurkar2018.fig3_linear": "normlib.studies.smoothness.santurkar2018_fig3_linear:linear",
        "santurkar2018.fig2": "normlib.studies.smoothness.santurkar2018_fig2:figure2",
        "santurkar2018.fig5": "normlib.studies.smoothness.santurkar2018_fig5:figure5",
        "santurkar2018.fig5_linear": "normlib.studies.smoothness.santurkar2018_fig5_linear:linear",
        "santurkar2018.fig4": "normlib.studies.smoothness.santurkar2018_fig4:fig4",
        "santurkar2018.plateau": "normlib.studies.smoothness.santurkar2018_plateau:plateau",
        "santurkar2018.plateau_linear": "normlib.studies.smoothness.santurkar2018_plateau_linear:plateau_linear",
        "notes.landscape_protocol": "normlib.studies.smoothness.landscape_protocol:protocol",
        "santurkar2018.surface": "normlib.studies.smoothness.santurkar2018_surface:surface",
        "ghorbani2019.spectrum": "normlib.studies.smoothness.ghorbani2019:spectrum",
        "kohler2019.length_direction": "normlib.studies.smoothness.kohler2019:length_direction",
        "li2020.exponential": "normlib.studies.smoothness.li2020:exponential",
        "hoffer2018.l1": "normlib.studies.smoothness.hoffer2018:l1",
        "hoffer2018.half": "normlib.studies.smoothness.hoffer2018_half:half",
        "luo2019reg.penalty": "normlib.studies.smoothness.luo2019reg:penalty",
        # What the drafts say
        "seed000.conditioning": "normlib.studies.drafts.seed000:conditioning",
        "seed001.batch": "normlib.studies.drafts.seed001_batch:batch",
        "seed001.layer": "normlib.studies.drafts.seed001_layer:layer",
        "seed001.code": "normlib.studies.drafts.seed001_code:code",
        "seed001.gradient": "normlib.studies.drafts.seed001_gradient:gradient",
        "seed002.signals": "normlib.studies.drafts.seed002_signals:signals",
        "seed002.rank": "normlib.studies.drafts.seed002_rank:rank",
        "seed002.gradients": "normlib.studies.drafts.seed002_gradients:gradients",
        "seed003.formula": "normlib.studies.drafts.seed003_formula:formula",
        "seed003.bias": "normlib.studies.drafts.seed003_bias:bias",
        "seed004.statistics": "normlib.studies.drafts.seed004_statistics:statistics",
        "seed004.effects": "normlib.studies.drafts.seed004_effects:effects",
        "seed004.flavors": "normlib.studies.drafts.seed004_flavors:flavors",
        "seed004.steps": "normlib.studies.drafts.seed004_steps:steps",
        # Speed
        "notes.speed": "normlib.studies.timing.speed:layers",
        "notes.standardization_cost": "normlib.studies.timing.speed_weights:standardization_cost",
        "notes.seeds_together": "normlib.studies.timing.speed_seeds:seeds_together",
    },
    hint="`normlib list` shows every study.",
)


def get_study(study_id: str) -> Study:
    """Return a study by its id.

    Raises:
        UnknownNameError: there is no such study; the message names the nearest.
    """
    return STUDIES[study_id]

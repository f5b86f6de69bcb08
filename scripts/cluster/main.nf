// A whole run by Nextflow: slides in parallel tasks, then everything else in one.
//
//     nextflow run scripts/cluster/main.nf --config tcga_nsclc --workdir /shared/runs/nsclc \
//         --options '--config.data.labels=/shared/labels.csv --config.data.slides=/shared/slides' \
//         --shards 16
//
// `-resume` is not needed: what is done is kept in the working directory, which all tasks see. Slides
// that cannot be read are left out and told in the logs; they fail no task (`--left_out_ok`).
// `encode_hr` is a stage of LRMIL and of `mil` on slides: for WISE-FUSE, of whose stages `prepare`
// alone is parted so, leave ENCODE away: `TRAIN(joined)`.

params.config = null
params.workdir = null
params.options = ''
params.shards = 4

def command = "lrmil run --config ${params.config} --workdir ${params.workdir} --left_out_ok ${params.options}"

process PREPARE {
    errorStrategy 'retry'
    maxRetries 3

    input:
    val shard

    output:
    val true

    script:
    """
    ${command} --stages prepare --shard ${shard}/${params.shards}
    """
}

process JOIN {
    input:
    val done

    output:
    val true

    script:
    """
    ${command} --stages pretrain,prepare
    """
}

process ENCODE {
    errorStrategy 'retry'
    maxRetries 3

    input:
    val joined
    each shard

    output:
    val true

    script:
    """
    ${command} --stages encode_hr --shard ${shard}/${params.shards}
    """
}

process TRAIN {
    input:
    val done

    output:
    val true

    script:
    """
    ${command}
    """
}

workflow {
    shards = Channel.of(1..params.shards)
    joined = JOIN(PREPARE(shards).collect())
    TRAIN(ENCODE(joined, shards).collect())
}
